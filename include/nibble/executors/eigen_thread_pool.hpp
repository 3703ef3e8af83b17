// An executor on Eigen's thread pool, the one that Eigen::ThreadPoolDevice and many programs have already.
//
//     Eigen::ThreadPool pool(7);                             // and the calling thread
//     nibble::eigen_thread_pool_executor threads(pool);
#pragma once

#if __has_include(<Eigen/ThreadPool>)
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#include <memory>

#include "../executor.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Runs tasks on the threads of a pool and on the calling thread, which takes part. The pool must outlive the executor.
///
/// The caller waits for tasks that others have begun, never for a place in the pool's queue: calls from inside the pool
/// (nested ones, too) and calls to a pool that is busy or stopped end all the same. Eigen's pool allocates for each
/// closure it is given, so this executor does; one for each thread that helps, and one for what they share.
class eigen_thread_pool_executor final : public executor {
public:
    explicit eigen_thread_pool_executor(Eigen::ThreadPoolInterface& pool) noexcept : pool_(pool) {}
    [[nodiscard]] int concurrency() const noexcept override { return pool_.NumThreads() + 1; }

private:
    // Shared with closures that may begin after all tasks are done, when the body is gone: they find no task left.
    struct job {
        job(index n, task_body f) noexcept : tasks(n), body(f) {}
        void take_part() noexcept {
            index finished = 0;
            for (index i = next.fetch_add(1); i < tasks; i = next.fetch_add(1), ++finished) body(i);
            if (finished != 0 && done.fetch_add(finished) + finished == tasks) {
                complete.store(1);
                complete.notify_one();
            }
        }
        const index tasks;
        const task_body body;
        std::atomic<index> next{0};
        std::atomic<index> done{0};
        std::atomic<int> complete{0};
    };

    void run(index tasks, task_body body) override {
        const auto work = std::make_shared<job>(tasks, body);
        const index helpers = tasks - 1 < pool_.NumThreads() ? tasks - 1 : pool_.NumThreads();
#if NIBBLE_HAS_EXCEPTIONS
        try {
            for (index i = 0; i < helpers; ++i) pool_.Schedule([work] { work->take_part(); });
        } catch (...) {  // out of memory: those that were asked already know the body, so nobody may leave before the end
        }
#else
        for (index i = 0; i < helpers; ++i) pool_.Schedule([work] { work->take_part(); });
#endif
        work->take_part();
        work->complete.wait(0);
    }

    Eigen::ThreadPoolInterface& pool_;
};

}  // namespace nibble
