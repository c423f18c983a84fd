// DUNNOCK_WIDER before a function makes it twice: for AVX-512, taken where the machine has it, and for what the build is
// for. Not under sanitizers, whose shadow calls come before the choice is made.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DUNNOCK_WIDER __attribute__((target_clones("arch=x86-64-v4", "default")))
#else
#define DUNNOCK_WIDER
#endif
/// For the template that such a function wraps: templates can't be made twice themselves.
#define DUNNOCK_INTO_WIDER inline __attribute__((always_inline))
