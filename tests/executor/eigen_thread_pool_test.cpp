// The executor on Eigen's thread pool: what every executor must do, calls from inside the pool, and a pool that is busy.
#include <nibble/executors/eigen_thread_pool.hpp>

#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "support/executor_checks.hpp"

using Index = nibble::index;

namespace {

/// Holds every thread of a pool until it is told to let go.
class blocked_pool {
public:
    explicit blocked_pool(int threads) : pool(threads) {
        for (int t = 0; t < threads; ++t)
            pool.Schedule([this] {
                std::unique_lock<std::mutex> lock(mutex_);
                ++waiting_;
                changed_.notify_all();
                changed_.wait(lock, [this] { return open_; });
            });
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return waiting_ == threads; });
    }
    ~blocked_pool() { release(); }
    void release() {
        const std::lock_guard<std::mutex> lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    int waiting_ = 0;
    bool open_ = false;

public:
    Eigen::ThreadPool pool;  // last: its destructor waits for the closures above
};

}  // namespace

TEST_CASE("Eigen's thread pool", "[executor]") {
    for (const int threads : {1, 3}) {
        Eigen::ThreadPool pool(threads);
        nibble::eigen_thread_pool_executor e(pool);
        CHECK(e.concurrency() == threads + 1);
        executor_checks::runs_each_task_once(e);
        executor_checks::carries_exceptions(e);
        executor_checks::nests(e);
        executor_checks::runs_two_at_once(e);
        // From inside the pool, on all its threads at once.
        std::vector<int> runs(static_cast<std::size_t>(8 * 50), 0);
        Eigen::Barrier all(8);
        for (Index task = 0; task < 8; ++task)
            pool.Schedule([&, task] {
                e.parallel_for(50, [&, task](Index i) { ++runs[static_cast<std::size_t>(50 * task + i)]; });
                all.Notify();
            });
        all.Wait();
        CHECK(runs == std::vector<int>(8 * 50, 1));
    }
}

TEST_CASE("a busy pool of Eigen does not hold up the caller", "[executor]") {
    blocked_pool busy(2);
    nibble::eigen_thread_pool_executor e(busy.pool);
    std::vector<std::thread::id> ids(10);
    e.parallel_for(10, [&](Index i) { ids[static_cast<std::size_t>(i)] = std::this_thread::get_id(); });
    CHECK(std::set<std::thread::id>(ids.begin(), ids.end()) == std::set<std::thread::id>{std::this_thread::get_id()});
    CHECK(executor_checks::thrown(e, 10, [](Index i) {
              if (i == 4) throw std::runtime_error("task 4");
          }) == "task 4");
    busy.release();  // the closures that were queued find nothing left to do
}
