#include "output_file.hpp"

#include <cerrno>
#include <random>
#include <system_error>

#include "types.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace bench {
namespace {

namespace fs = std::filesystem;

std::string reason(int error) { return std::generic_category().message(error); }

bool reaches_disk(std::FILE* file) {
    if (std::fflush(file) != 0) return false;
#if defined(__unix__) || defined(__APPLE__)
    // Devices and pipes cannot be synced and say so.
    if (::fsync(::fileno(file)) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS) return false;
#endif
    return true;
}

}  // namespace

output_file::output_file(fs::path path) : path_(std::move(path)) {
    std::error_code ignored;
    const fs::file_status there = fs::status(path_, ignored);
    if (fs::is_directory(there)) fail("open", EISDIR);
    if (fs::exists(there) && !fs::is_regular_file(there)) {
        file_ = std::fopen(path_.c_str(), "wb");
    } else {
        // "x": never somebody else's file. A symbolic link keeps pointing where it points.
        if (fs::is_symlink(fs::symlink_status(path_, ignored))) path_ = fs::weakly_canonical(path_, ignored);
        temporary_ = path_;
        temporary_ += ".part" + std::to_string(std::random_device{}());
        file_ = std::fopen(temporary_.c_str(), "wbx");
    }
    if (file_ == nullptr) {
        const int error = errno;
        temporary_.clear();
        fail("open", error);
    }
}

output_file::~output_file() {
    if (file_ != nullptr) std::fclose(file_);
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove(temporary_, ignored);
}

void output_file::commit(const std::string& contents) {
    if (std::fwrite(contents.data(), 1, contents.size(), file_) != contents.size() || !reaches_disk(file_))
        fail("write", errno);
    std::FILE* const file = file_;
    file_ = nullptr;
    if (std::fclose(file) != 0) fail("write", errno);
    if (temporary_.empty()) return;
    std::error_code why;
    fs::rename(temporary_, path_, why);
    if (why) fail("replace", why.value());
    temporary_.clear();
}

void output_file::fail(const char* what, int error) {
    throw bad_input(path_.string() + ": cannot " + what + " this output file: " + reason(error));
}

void print(const std::string& text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
        throw bad_input("standard output: cannot write: " + reason(errno));
}

}  // namespace bench
