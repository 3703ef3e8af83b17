// Threads that wait for work between the samples of a benchmark.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

namespace bench {

/// `threads` threads, the caller's included. Waiting ones spin for some microseconds and then sleep.
class thread_pool {
public:
    explicit thread_pool(int threads);
    ~thread_pool();
    thread_pool(const thread_pool&) = delete;
    thread_pool& operator=(const thread_pool&) = delete;

    [[nodiscard]] int size() const noexcept { return static_cast<int>(workers_.size()) + 1; }

    /// Calls job(0) .. job(size() - 1), each on a thread of its own, job(0) on the caller's. The job must not throw.
    void on_each(const std::function<void(int)>& job);

    /// Calls body(0) .. body(tasks - 1), each once, on whichever thread is free.
    void parallel_for(std::ptrdiff_t tasks, const std::function<void(std::ptrdiff_t)>& body);

private:
    void work(int thread);

    const std::function<void(int)>* job_ = nullptr;
    std::atomic<unsigned> generation_{0};
    std::atomic<int> running_{0};
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

}  // namespace bench
