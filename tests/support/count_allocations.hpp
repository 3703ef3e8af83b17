// Counts calls of operator new in the whole program, on all threads. Included by one file of a program: it replaces the
// global operators.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace allocations {
inline std::atomic<long> count{0};

/// How many allocations a call made.
template <class Call>
long of(Call call) {
    const long before = count.load();
    call();
    return count.load() - before;
}

inline void* get(std::size_t bytes, std::size_t alignment) {
    count.fetch_add(1);
    void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment + (bytes == 0 ? alignment : 0));
    if (p == nullptr) throw std::bad_alloc();
    return p;
}

// Not inlined: GCC would see free() of what it takes for the library's operator new.
#if defined(__GNUC__)
__attribute__((noinline))
#endif
inline void release(void* p) noexcept { std::free(p); }
}  // namespace allocations

// All of them: one that is left out would pair an allocation of the library's with a deallocation of ours.
void* operator new(std::size_t bytes) { return allocations::get(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes) { return allocations::get(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t a) { return allocations::get(bytes, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t bytes, std::align_val_t a) { return allocations::get(bytes, static_cast<std::size_t>(a)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocations::get(bytes, alignof(std::max_align_t)); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return allocations::get(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept { return allocations::get(bytes, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t bytes, std::align_val_t a, const std::nothrow_t&) noexcept { return allocations::get(bytes, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { allocations::release(p); }
void operator delete[](void* p) noexcept { allocations::release(p); }
void operator delete(void* p, std::size_t) noexcept { allocations::release(p); }
void operator delete[](void* p, std::size_t) noexcept { allocations::release(p); }
void operator delete(void* p, std::align_val_t) noexcept { allocations::release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { allocations::release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { allocations::release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { allocations::release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { allocations::release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { allocations::release(p); }
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { allocations::release(p); }
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept { allocations::release(p); }
