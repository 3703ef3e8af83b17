// What the user sees while the program works, on standard error: one status line with the time left on a terminal,
// plain lines elsewhere. No colors.
#pragma once

#include <chrono>
#include <string>

namespace bench {

class progress {
public:
    progress();
    ~progress();
    progress(const progress&) = delete;
    progress& operator=(const progress&) = delete;

    /// The current step; shown on terminals only. Cheap enough to call before every sample.
    void status(const std::string& text);
    /// A finished step; a plain line where there is no terminal.
    void milestone(const std::string& text);
    /// So many seconds are still to come; no time left is shown before this is called.
    void expect(double seconds) noexcept { end_ = elapsed() + seconds; }
    /// Takes the status line away.
    void clear();

    /// Seconds since the beginning.
    [[nodiscard]] double elapsed() const noexcept;

private:
    [[nodiscard]] std::string time_left() const;

    double end_ = 0.0;
    bool terminal_;
    bool shown_ = false;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// From here on Ctrl-C only sets a flag, so that what has been measured can be shown; the second one ends the program.
void catch_interrupts();
[[nodiscard]] bool was_interrupted() noexcept;

}  // namespace bench
