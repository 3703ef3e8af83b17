// System calls that fail on command. Included by one file of a program: its write, fsync, close, rename, read and mmap take
// the place of the C library's in the whole program. Linux with glibc only; elsewhere NIBBLE_TEST_FAILING_SYSTEM is 0.
//
//   failing_system::write.fail_after = 100;       // bytes; then ENOSPC
//   failing_system::fsync.error = EIO;
//   ...
//   failing_system::reset();
#pragma once

#include <climits>  // any header of the C library: it says whether it is glibc

#if defined(__linux__) && defined(__GLIBC__) && defined(__x86_64__)
#define NIBBLE_TEST_FAILING_SYSTEM 1

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace failing_system {

struct call {
    int error = 0;        // what the call fails with; 0: it does not
    int interruptions = 0;  // EINTR so many times before
    int calls = 0;
};
struct transfer : call {
    long fail_after = LONG_MAX;  // bytes that still go through
    long at_once = LONG_MAX;     // bytes of one call
};
inline transfer write, read;
inline call fsync, close, rename, mmap;

inline void reset() {
    write = read = transfer{};
    fsync = close = rename = mmap = call{};
}

// Whether the call fails now; errno is set.
inline bool fails(call& c) {
    ++c.calls;
    if (c.interruptions > 0) {
        --c.interruptions;
        errno = EINTR;
        return true;
    }
    if (c.error != 0) errno = c.error;
    return c.error != 0;
}
inline long allowed(transfer& t, long n) {
    n = n < t.at_once ? n : t.at_once;
    n = n < t.fail_after ? n : t.fail_after;
    if (t.fail_after != LONG_MAX) t.fail_after -= n;
    return n;
}

}  // namespace failing_system

extern "C" {

ssize_t write(int fd, const void* from, size_t n) {
    if (fd > 2) {
        auto& t = failing_system::write;
        if (failing_system::fails(t)) return -1;
        if (n > 0 && t.fail_after == 0) {
            errno = ENOSPC;
            return -1;
        }
        n = static_cast<size_t>(failing_system::allowed(t, static_cast<long>(n)));
    }
    return syscall(SYS_write, fd, from, n);
}
ssize_t read(int fd, void* to, size_t n) {
    auto& t = failing_system::read;
    if (failing_system::fails(t)) return -1;
    return syscall(SYS_read, fd, to, static_cast<size_t>(failing_system::allowed(t, static_cast<long>(n))));
}
int fsync(int fd) { return failing_system::fails(failing_system::fsync) ? -1 : static_cast<int>(syscall(SYS_fsync, fd)); }
int close(int fd) {  // as Linux does: the descriptor is gone even if the call fails
    const bool fails = failing_system::fails(failing_system::close);
    const int error = errno;
    const int done = static_cast<int>(syscall(SYS_close, fd));
    if (fails) errno = error;
    return fails ? -1 : done;
}
int rename(const char* from, const char* to) noexcept {
    return failing_system::fails(failing_system::rename) ? -1 : static_cast<int>(syscall(SYS_rename, from, to));
}
void* mmap(void* at, size_t n, int protection, int flags, int fd, off_t offset) noexcept {
    if (fd >= 0 && failing_system::fails(failing_system::mmap)) return MAP_FAILED;
    return reinterpret_cast<void*>(syscall(SYS_mmap, at, n, protection, flags, fd, offset));
}

}  // extern "C"

#else
#define NIBBLE_TEST_FAILING_SYSTEM 0
#endif
