#include "thread_pool.hpp"

namespace bench {
namespace {

constexpr int spins = 20000;  // some 20 to 100 microseconds: more than the gap between two parts of a product

void pause() noexcept {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_ia32_pause();
#endif
}

// Until the value is another one than `old`.
template <class T>
void wait_while(const std::atomic<T>& value, T old) noexcept {
    for (int i = 0; i < spins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    value.wait(old, std::memory_order_acquire);
}

}  // namespace

thread_pool::thread_pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

thread_pool::~thread_pool() {
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    for (std::thread& t : workers_) t.join();
}

void thread_pool::work(int thread) {
    for (unsigned seen = 0;;) {
        wait_while(generation_, seen);
        // Never two ahead: the next job comes only after all have done this one.
        ++seen;
        if (stopping_) return;
        (*job_)(thread);
        if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
    }
}

void thread_pool::on_each(const std::function<void(int)>& job) {
    if (workers_.empty()) return job(0);
    job_ = &job;
    running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    job(0);
    for (int left = running_.load(std::memory_order_acquire); left != 0;
         left = running_.load(std::memory_order_acquire))
        wait_while(running_, left);
}

void thread_pool::parallel_for(std::ptrdiff_t tasks, const std::function<void(std::ptrdiff_t)>& body) {
    std::atomic<std::ptrdiff_t> next{0};
    on_each([&](int) {
        for (std::ptrdiff_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) body(i);
    });
}

}  // namespace bench
