// A whole program without exceptions and RTTI: it quantizes, multiplies and checks the result, asks before it makes a
// mistake, and makes some: each calls the handler of set_error_handler, which must not return.
#include <nibble/executor.hpp>
#include <nibble/nibble.hpp>
#include <nibble/workspace.hpp>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <sys/wait.h>
#include <unistd.h>

#if NIBBLE_HAS_EXCEPTIONS
#error "this program is compiled with -fno-exceptions"
#endif

namespace {

int failures = 0;
int checks = 0;

void check(bool good, const char* what) {
    ++checks;
    if (good) return;
    ++failures;
    std::printf("failed: %s\n", what);
}

nibble::errc expected_code = nibble::errc::ok;
const char* expected_part = "";

// A handler must not return, and one that jumped away would leave destructors behind: this one ends the process.
void handler(nibble::errc code, const char* message) {
    const bool good = code == expected_code && std::strstr(message, expected_part) != nullptr;
    if (!good) std::printf("code %d, message: %s\n", static_cast<int>(code), message);
    std::fflush(stdout);
    std::_Exit(good ? 0 : 1);
}

/// Whether a call reaches the handler with that code and a message that contains `part`; in a process of its own.
template <class Call>
bool fails_with(nibble::errc code, const char* part, Call call) {
    expected_code = code;
    expected_part = part;
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        call();
        std::_Exit(2);  // there was no mistake
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
    using Eigen::MatrixXf;

    MatrixXf w(40, 96), x(96, 3);
    for (Eigen::Index i = 0; i < w.size(); ++i) w.data()[i] = static_cast<float>((i * 37 + 11) % 101 - 50) / 32.0f;
    for (Eigen::Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>((i * 53 + 7) % 89 - 44) / 16.0f;

    nibble::qmatrix q = nibble::quantize<nibble::int8>(w);
    check(nibble::sqnr_db(w, nibble::dequantize(q)) > 40.0, "int8 is within 40 dB of its weights");
    MatrixXf y = q * x;
    const MatrixXf wanted = w * x;
    check((y - wanted).norm() < 0.01f * wanted.norm(), "the product is within 1 % of the float product");
    check(nibble::sqnr_db(w, nibble::dequantize(nibble::quantize(w, "q4_k"))) > 15.0, "a recipe by its name");

    // Asking first: no handler is needed.
    MatrixXf wrong = MatrixXf::Zero(95, 3);
    const nibble::status possible =
        nibble::check_gemm(q, nibble::eigen_view<MatrixXf>(x).get(), nibble::writable_view(y));
    check(static_cast<bool>(possible), "check_gemm allows what is possible");
    const nibble::status impossible =
        nibble::check_gemm(q, nibble::eigen_view<MatrixXf>(wrong).get(), nibble::writable_view(y));
    check(!impossible && impossible.code() == nibble::errc::shape_mismatch, "check_gemm refuses X of 95 rows");
    check(impossible.message().find("40x96") != std::string::npos &&
              impossible.message().find("95x3") != std::string::npos,
          "its message holds both shapes");
    const nibble::quantize_plan plan = nibble::make_plan(*nibble::find_recipe("int4_g32"));
    check(static_cast<bool>(nibble::check_quantize(nibble::row_major(w.data(), 40, 96), plan)), "check_quantize");

    // Executors and workspaces.
    nibble::index sum = 0;
    auto loop = nibble::make_executor(2, [](nibble::index n, auto body) {
        for (nibble::index i = 0; i < n; ++i) body(i);
    });
    loop.parallel_for(10, [&](nibble::index i) { sum += i; });
    nibble::serial().parallel_for(10, [&](nibble::index i) { sum += i; });
    check(sum == 90, "executors run their tasks");
    nibble::workspace scratch(100);
    check(scratch.capacity() == 128, "a workspace");

    // A mistake calls the handler.
    check(nibble::set_error_handler(&handler) != nullptr, "there was a handler before");
    check(nibble::set_error_handler(&handler) == &handler, "the handler is set");
    check(fails_with(nibble::errc::shape_mismatch, "95x3", [&] { nibble::gemm(q, wrong, y); }), "a wrong shape");
    check(fails_with(nibble::errc::not_found, "no_such_format", [&] { q = nibble::quantize(wrong, "no_such_format"); }),
          "a wrong name");
    check(fails_with(nibble::errc::out_of_range, "(40, 0)", [&] { static_cast<void>(q.code(40, 0)); }),
          "a row past the end");
    check(fails_with(nibble::errc::non_finite, "W(1, 2) is inf",
                     [&] {
                         wrong(1, 2) = HUGE_VALF;
                         q = nibble::quantize<nibble::int4>(wrong);
                     }),
          "Inf in the weights");
    check(fails_with(nibble::errc::overlap, "shares memory",
                     [&] {
                         MatrixXf both = MatrixXf::Zero(96, 3);
                         nibble::gemm(q, both, both.topRows(40));
                     }),
          "an output inside X");
    auto lazy = nibble::make_executor(2, [](nibble::index, auto body) { body(0); });
    check(fails_with(nibble::errc::invalid_argument, "of 2 tasks 1 were run", [&] { lazy.parallel_for(2, [](nibble::index) {}); }),
          "an executor that leaves out a task");
    check(fails_with(nibble::errc::out_of_range, "do not fit in memory", [&] { scratch.reserve(SIZE_MAX); }), "too large a workspace");
    check(fails_with(nibble::errc::invalid_argument, "row 8", [&] { static_cast<void>(q.row_block(8, 8)); }), "a row block inside a panel");
    check(nibble::set_error_handler(nullptr) == &handler, "null restores the default");

    std::printf("%d checks, %d failed\n", checks, failures);
    return failures == 0 && checks == 20 ? 0 : 1;
}
