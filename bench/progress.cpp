#include "progress.hpp"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace bench {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

extern "C" void on_interrupt(int signal) {
    interrupt_flag = 1;
    std::signal(signal, SIG_DFL);
}

bool is_terminal() {
#if defined(__unix__) || defined(__APPLE__)
    return ::isatty(STDERR_FILENO) != 0;
#else
    return false;
#endif
}

std::size_t terminal_columns() {
    const char* text = std::getenv("COLUMNS");
    const long columns = text != nullptr ? std::strtol(text, nullptr, 10) : 0;
    return columns > 10 ? static_cast<std::size_t>(columns) : 80;
}

}  // namespace

progress::progress() : terminal_(is_terminal()) {}

progress::~progress() { clear(); }

double progress::elapsed() const noexcept {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string progress::time_left() const {
    if (end_ == 0.0) return {};
    const auto seconds = static_cast<long>((std::max)(end_ - elapsed(), 0.0) + 0.5);
    char text[40];
    std::snprintf(text, sizeof text, "  ETA %ldm%02lds", seconds / 60, seconds % 60);
    return text;
}

void progress::status(const std::string& text) {
    if (!terminal_) return;
    const std::string line = (text + time_left()).substr(0, terminal_columns() - 1);
    std::fprintf(stderr, "\r%s\x1b[K", line.c_str());
    std::fflush(stderr);
    shown_ = true;
}

void progress::milestone(const std::string& text) {
    if (terminal_)
        status(text);
    else
        std::fprintf(stderr, "nibble_bench: %s%s\n", text.c_str(), time_left().c_str());
}

void progress::clear() {
    if (shown_) std::fprintf(stderr, "\r\x1b[K");
    shown_ = false;
}

void catch_interrupts() {
    // Programs in the background are started to ignore it, and go on ignoring it.
    if (std::signal(SIGINT, on_interrupt) == SIG_IGN) std::signal(SIGINT, SIG_IGN);
}

bool was_interrupted() noexcept { return interrupt_flag != 0; }

}  // namespace bench
