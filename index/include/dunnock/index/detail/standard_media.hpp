// The structures on the media of this library, compiled once.
//
// DUNNOCK_ON_STANDARD_MEDIA(extern, Template) in a header keeps every file that includes it from compiling
// Template<M> again for these media; DUNNOCK_ON_STANDARD_MEDIA(, Template) in one source file compiles it. Other media
// (simulated ones, those of tests) are compiled where they are used. Only for structures whose operations take long
// compared with a function call: the filter and the index are inlined into their callers.
#pragma once

#include "dunnock/pmem/file_media.hpp"
#include "dunnock/pmem/media.hpp"

#define DUNNOCK_ON_STANDARD_MEDIA(declare, Template) \
  declare template class Template<ProcessMedia>;     \
  declare template class Template<DirectMedia>;      \
  declare template class Template<EadrMedia>;        \
  declare template class Template<FileMedia>;        \
  declare template class Template<ReadOnlyMedia>
