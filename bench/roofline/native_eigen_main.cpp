// The other end of native_eigen.hpp: compiled with -march=native, started by the benchmark program.

#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>

#include "float_product.hpp"

namespace {

using bench::roofline::float_product;

class server {
public:
    std::string answer(const std::string& line) {
        std::istringstream words(line);
        std::string what;
        words >> what;
        if (what == "load") return load(words);
        if (what == "run" && product_) return run(words);
        if (what == "rows" && product_) return rows(words);
        return "unknown command '" + line + "'";
    }

private:
    std::string load(std::istringstream& words) {
        bench::roofline::float_shape s;
        int threads = 0;
        words >> s.n >> s.k >> s.m >> s.copies >> threads;
        if (!words || s.n < 1 || s.k < 1 || s.m < 1 || s.copies < 1 || threads < 1) return "load: bad numbers";
        product_.reset();  // its memory first
        pool_ = std::make_unique<bench::thread_pool>(threads);
        product_ = std::make_unique<float_product>(s, *pool_);
        n_ = s.n;
        m_ = s.m;
        return "ok " + bench::eigen_instruction_sets();
    }

    std::string run(std::istringstream& words) {
        std::ptrdiff_t m = 0;
        int times = 0;
        int warm = 0;
        words >> m >> times >> warm;
        if (!words || m < 1 || m > m_ || times < 1) return "run: bad numbers";
        char text[40];
        std::snprintf(text, sizeof text, "ok %.9g", product_->run(m, times, warm != 0));
        return text;
    }

    std::string rows(std::istringstream& words) {
        std::ptrdiff_t m = 0;
        words >> m;
        if (!words || m < 1 || m > m_) return "rows: bad numbers";
        std::string out = "ok";
        for (std::ptrdiff_t i = 0; words >> i;) {
            if (i < 0 || i >= n_) return "rows: no row " + std::to_string(i);
            for (std::ptrdiff_t j = 0; j < m; ++j) {
                char text[32];
                std::snprintf(text, sizeof text, " %.9g", static_cast<double>(product_->y(i, j)));
                out += text;
            }
        }
        return out;
    }

    std::unique_ptr<bench::thread_pool> pool_;
    std::unique_ptr<float_product> product_;
    std::ptrdiff_t n_ = 0;
    std::ptrdiff_t m_ = 0;
};

}  // namespace

int main() {
    // Ctrl-C is for the program that started this one; its end is the end of the input.
    std::signal(SIGINT, SIG_IGN);
    server s;
    for (std::string line; std::getline(std::cin, line);) {
        std::string answer;
        try {
            answer = s.answer(line);
        } catch (const std::exception& e) {
            answer = e.what();
        }
        std::cout << answer << std::endl;
    }
    return 0;
}
