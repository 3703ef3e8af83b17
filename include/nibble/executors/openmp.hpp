// An executor on OpenMP's threads. For files that are compiled with -fopenmp (/openmp).
//
//     nibble::openmp_executor threads;        // as many as OMP_NUM_THREADS says; or openmp_executor threads(4)
#pragma once

#if !defined(_OPENMP)
#error "nibble/executors/openmp.hpp: compile this file with OpenMP (-fopenmp)"
#endif

#include <omp.h>

#include "../executor.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Runs tasks in an OpenMP parallel region. Inside another region OpenMP decides how many threads there are: one, unless
/// OMP_MAX_ACTIVE_LEVELS allows more.
class openmp_executor final : public executor {
public:
    /// Up to `threads` threads; 0: omp_get_max_threads() of each call. Throws errc::invalid_argument below 0.
    explicit openmp_executor(int threads = 0) : threads_(threads) {
        if (threads < 0)
            detail::fail(errc::invalid_argument, "openmp_executor: " + std::to_string(threads) + " threads");
    }
    [[nodiscard]] int concurrency() const noexcept override { return threads_ > 0 ? threads_ : omp_get_max_threads(); }

private:
    void run(index tasks, task_body body) override {
        const int most = concurrency();
        const int threads = tasks < most ? static_cast<int>(tasks) : most;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (index i = 0; i < tasks; ++i) body(i);
    }

    int threads_;
};

}  // namespace nibble
