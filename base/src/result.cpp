#include "dunnock/base/result.hpp"

namespace dunnock {

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument: return "InvalidArgument";
    case ErrorCode::kNotFound: return "NotFound";
    case ErrorCode::kAlreadyExists: return "AlreadyExists";
    case ErrorCode::kAlreadyOpen: return "AlreadyOpen";
    case ErrorCode::kNotADunnockPool: return "NotADunnockPool";
    case ErrorCode::kWrongVersion: return "WrongVersion";
    case ErrorCode::kWrongLayout: return "WrongLayout";
    case ErrorCode::kCorrupt: return "Corrupt";
    case ErrorCode::kNoSpace: return "NoSpace";
    case ErrorCode::kReadOnly: return "ReadOnly";
    case ErrorCode::kUnsupported: return "Unsupported";
    case ErrorCode::kPeerLost: return "PeerLost";
    case ErrorCode::kDevice: return "Device";
    case ErrorCode::kIo: return "Io";
  }
  return "Unknown";
}

}  // namespace dunnock
