// Eigen compiled with -march=native, in a process of its own, so that no code is shared: of two copies of one inline
// function the linker keeps one. The process waits for commands, a line each, on its standard input:
//
//     load N K M COPIES THREADS    makes a float_product                    answers "ok INSTRUCTION-SETS"
//     run M TIMES WARM             multiplies                               answers "ok SECONDS"
//     rows M I...                  Y(I, j) of the last product, j < M       answers "ok" and the numbers, row by row
//
// Other answers say what went wrong. It ends when its input does.
#pragma once

#include <string>
#include <vector>

#include "float_product.hpp"

namespace bench::roofline {

class native_eigen {
public:
    /// Starts the program. Throws bad_input if that fails; a program for another CPU is noticed by load().
    explicit native_eigen(const std::string& program);
    ~native_eigen();
    native_eigen(const native_eigen&) = delete;
    native_eigen& operator=(const native_eigen&) = delete;

    /// All of these throw bad_input with what the process said, or how it ended.
    void load(const float_shape& shape, int threads);
    [[nodiscard]] double run(std::ptrdiff_t m, int times, bool warm);
    [[nodiscard]] std::vector<float> rows(std::ptrdiff_t m, const std::vector<std::ptrdiff_t>& which);

    /// "AVX SSE ...": known after load().
    [[nodiscard]] const std::string& instruction_sets() const noexcept { return instruction_sets_; }

    /// Whether this system can start one.
    [[nodiscard]] static bool available() noexcept;

private:
    [[nodiscard]] std::string ask(const std::string& command);

    int to_ = -1;
    int from_ = -1;
    long process_ = -1;
    std::string unread_;
    std::string instruction_sets_;
};

}  // namespace bench::roofline
