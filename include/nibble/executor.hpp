// Where threads come from. The library creates none: an executor lends those of the host program.
//
//     nibble::openmp_executor threads;                                  // nibble/executors/openmp.hpp
//     nibble::eigen_thread_pool_executor threads(pool);                 // nibble/executors/eigen_thread_pool.hpp
//     auto threads = nibble::make_executor(8, [&](nibble::index n, auto body) { arena.for_each_index(n, body); });
//
// or a class of your own, with two functions:
//
//     class my_executor : public nibble::executor {
//     public:
//         int concurrency() const noexcept override;       // threads that may take part, the caller's included
//     private:
//         void run(nibble::index tasks, task_body body) override;   // body(0) .. body(tasks - 1), then return
//     };
//
// Results never depend on the executor: a task computes whole outputs, and no sum is split among tasks.
#pragma once

#include <atomic>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>

#include "error.hpp"

namespace nibble::inline NIBBLE_ABI {

/// A function of a task's index, by reference: what an executor calls. Copies are free, refer to the same function, and
/// are valid until parallel_for returns. Calls never throw.
class task_body {
public:
    void operator()(index task) const noexcept { call_(body_, task); }

private:
    friend class executor;
    using function = void (*)(void* body, index task) noexcept;
    task_body(void* body, function call) noexcept : body_(body), call_(call) {}

    void* body_;
    function call_;
};

/// Runs tasks, on threads that it has from elsewhere. The verbs take a pointer to one.
class executor {
public:
    executor() = default;
    executor(const executor&) = delete;
    executor& operator=(const executor&) = delete;
    virtual ~executor() = default;

    /// The number of threads that may take part, the calling one included; at least 1.
    [[nodiscard]] virtual int concurrency() const noexcept = 0;

    /// Calls body(0) .. body(tasks - 1), each once, on any thread and in any order, and returns when all are done. May be
    /// called from a body. Allocates nothing itself. If bodies throw, the exception of the first to do so is thrown
    /// here; tasks that had not begun by then are left out. Throws errc::invalid_argument if run() left out a task.
    template <class Body>
    void parallel_for(index tasks, Body&& body) {
        if (tasks <= 1 || concurrency() <= 1) {
            for (index i = 0; i < tasks; ++i) body(i);
            return;
        }
        guarded<std::remove_reference_t<Body>> work(body);
        run(tasks, task_body(&work, &work.call));
        work.finish(tasks);
    }

private:
    /// Calls body(0) .. body(tasks - 1), each once, and returns when all are done. Only called with at least two tasks and
    /// a concurrency of at least 2.
    virtual void run(index tasks, task_body body) = 0;

    // Exceptions stop here, so that no executor need know of them: few thread pools survive one.
    template <class Body>
    class guarded {
    public:
        explicit guarded(Body& body) noexcept : body_(body) {}

        static void call(void* self, index task) noexcept {
            auto& work = *static_cast<guarded*>(self);
#if NIBBLE_HAS_EXCEPTIONS
            if (work.failed_.load(std::memory_order_relaxed)) return;
            try {
                work.body_(task);
            } catch (...) {
                // Written by one thread, and read after run() has waited for it.
                if (!work.failed_.exchange(true)) work.first_ = std::current_exception();
            }
#else
            work.body_(task);
#endif
            work.done_.fetch_add(1, std::memory_order_relaxed);
        }

        void finish(index tasks) {
#if NIBBLE_HAS_EXCEPTIONS
            if (first_) std::rethrow_exception(std::move(first_));
#endif
            const index done = done_.load(std::memory_order_relaxed);
            if (done != tasks)
                detail::fail(errc::invalid_argument, "executor: of " + std::to_string(tasks) + " tasks " +
                                                         std::to_string(done) + " were run");
        }

    private:
        Body& body_;
        std::atomic<index> done_{0};
#if NIBBLE_HAS_EXCEPTIONS
        std::atomic<bool> failed_{false};
        std::exception_ptr first_;
#endif
    };
};

/// The calling thread alone: what verbs use when no executor is given.
class serial_executor final : public executor {
public:
    [[nodiscard]] int concurrency() const noexcept override { return 1; }

private:
    void run(index tasks, task_body body) override {
        for (index i = 0; i < tasks; ++i) body(i);
    }
};

/// A serial_executor for all to share; it has no state.
[[nodiscard]] inline executor& serial() noexcept {
    static serial_executor one;
    return one;
}

/// Any function parallel_for(n, body) as an executor: it must call body(i) once for each i of 0 .. n - 1, on any thread,
/// and return when all are done. `body` is small, may be copied, and does not throw.
template <class ParallelFor>
class function_executor final : public executor {
public:
    function_executor(int concurrency, ParallelFor parallel_for)
        : concurrency_(concurrency), parallel_for_(std::move(parallel_for)) {
        if (concurrency < 1)
            detail::fail(errc::invalid_argument, "make_executor: a concurrency of " + std::to_string(concurrency));
    }
    [[nodiscard]] int concurrency() const noexcept override { return concurrency_; }

private:
    void run(index tasks, task_body body) override { parallel_for_(tasks, body); }

    int concurrency_;
    ParallelFor parallel_for_;
};

/// make_executor(8, f): f(n, body) runs the tasks, on up to 8 threads. Throws errc::invalid_argument below 1.
template <class ParallelFor>
    requires std::is_invocable_v<ParallelFor&, index, task_body>
[[nodiscard]] function_executor<std::remove_cvref_t<ParallelFor>> make_executor(int concurrency, ParallelFor&& parallel_for) {
    return {concurrency, std::forward<ParallelFor>(parallel_for)};
}

}  // namespace nibble
