// A file that is there as a whole or not at all: it is written beside its place under another name, brought to the
// disk, and only then renamed. Devices and pipes (/dev/stdout) are written directly.
#pragma once

#include <cstdio>
#include <filesystem>
#include <string>

namespace bench {

class output_file {
public:
    /// Opens it now, so that a bad path is known before the measuring starts. Throws bad_input.
    explicit output_file(std::filesystem::path path);
    /// Without commit() nothing is left behind.
    ~output_file();
    output_file(const output_file&) = delete;
    output_file& operator=(const output_file&) = delete;

    /// Writes the contents and puts the file in its place. Throws bad_input when any step fails.
    void commit(const std::string& contents);

private:
    [[noreturn]] void fail(const char* what, int error);

    std::filesystem::path path_;
    std::filesystem::path temporary_;  // empty for devices and pipes
    std::FILE* file_ = nullptr;
};

/// Writes to standard output and makes sure that it arrived. Throws bad_input.
void print(const std::string& text);

}  // namespace bench
