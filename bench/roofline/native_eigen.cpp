#include "native_eigen.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <system_error>

#include "../types.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define BENCH_HAS_PROCESSES 1
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#else
#define BENCH_HAS_PROCESSES 0
#endif

namespace bench::roofline {

bool native_eigen::available() noexcept { return BENCH_HAS_PROCESSES != 0; }

#if BENCH_HAS_PROCESSES
namespace {

[[noreturn]] void fail(const std::string& what, int error) {
    throw bad_input("Eigen -march=native: " + what + ": " + std::generic_category().message(error));
}

// How a process ended, in words.
std::string ending(int status) {
    if (WIFSIGNALED(status))
        return "ended by signal " + std::to_string(WTERMSIG(status)) +
               (WTERMSIG(status) == SIGILL ? " (it was compiled for another CPU)" : "");
    return "ended with exit code " + std::to_string(WEXITSTATUS(status));
}

}  // namespace

// A socket in place of two pipes: writing to a process that is gone is then an error of send(), not a signal.
native_eigen::native_eigen(const std::string& program) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) fail("cannot make a socket", errno);
    for (const int end : ends) ::fcntl(end, F_SETFD, FD_CLOEXEC);
    std::string name = program;
    char* const arguments[] = {name.data(), nullptr};
    const pid_t process = ::fork();
    if (process == 0) {  // only calls that are safe between fork and exec
        ::dup2(ends[1], STDIN_FILENO);
        ::dup2(ends[1], STDOUT_FILENO);
        ::execv(name.c_str(), arguments);
        ::_exit(127);
    }
    const int error = errno;
    ::close(ends[1]);
    if (process < 0) {
        ::close(ends[0]);
        fail("cannot start a process", error);
    }
    to_ = from_ = ends[0];
    process_ = process;
}

native_eigen::~native_eigen() {
    if (to_ >= 0) ::close(to_);
    if (process_ > 0) ::waitpid(static_cast<pid_t>(process_), nullptr, 0);
}

std::string native_eigen::ask(const std::string& command) {
    const std::string line = command + "\n";
    std::size_t sent = 0;
    bool gone = process_ <= 0;
    while (!gone && sent < line.size()) {
        const ssize_t n = ::send(to_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
        if (n > 0)
            sent += static_cast<std::size_t>(n);
        else if (n == 0 || errno != EINTR)
            gone = true;
    }
    std::size_t end = std::string::npos;
    while (!gone && (end = unread_.find('\n')) == std::string::npos) {
        char text[65536];
        const ssize_t n = ::read(from_, text, sizeof text);
        if (n > 0)
            unread_.append(text, static_cast<std::size_t>(n));
        else if (n == 0 || errno != EINTR)
            gone = true;
    }
    if (gone) {
        int status = 0;
        if (process_ > 0) ::waitpid(static_cast<pid_t>(process_), &status, 0);
        process_ = -1;
        throw bad_input("Eigen -march=native: the process " + ending(status));
    }
    std::string answer = unread_.substr(0, end);
    unread_.erase(0, end + 1);
    if (answer.compare(0, 2, "ok") != 0) throw bad_input("Eigen -march=native: " + answer);
    return answer.substr((std::min)(answer.size(), std::size_t{3}));
}
#else
native_eigen::native_eigen(const std::string&) {
    throw bad_input("Eigen -march=native: this system has no processes that can be talked to");
}
native_eigen::~native_eigen() = default;
std::string native_eigen::ask(const std::string&) { return {}; }
#endif

void native_eigen::load(const float_shape& s, int threads) {
    instruction_sets_ = ask("load " + std::to_string(s.n) + " " + std::to_string(s.k) + " " + std::to_string(s.m) +
                            " " + std::to_string(s.copies) + " " + std::to_string(threads));
}

double native_eigen::run(std::ptrdiff_t m, int times, bool warm) {
    return std::strtod(ask("run " + std::to_string(m) + " " + std::to_string(times) + (warm ? " 1" : " 0")).c_str(),
                       nullptr);
}

std::vector<float> native_eigen::rows(std::ptrdiff_t m, const std::vector<std::ptrdiff_t>& which) {
    std::string command = "rows " + std::to_string(m);
    for (const std::ptrdiff_t i : which) command += " " + std::to_string(i);
    const std::string answer = ask(command);
    std::vector<float> y;
    const char* at = answer.c_str();
    for (char* end = nullptr;; at = end) {
        const float value = std::strtof(at, &end);
        if (end == at) break;
        y.push_back(value);
    }
    if (y.size() != which.size() * static_cast<std::size_t>(m))
        throw bad_input("Eigen -march=native: expected " + std::to_string(which.size()) + " rows of " +
                        std::to_string(m) + ", found " + std::to_string(y.size()) + " numbers");
    return y;
}

}  // namespace bench::roofline
