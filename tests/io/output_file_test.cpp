// Files that take their place when they are whole: what the destination is after every way in which writing can fail.
#include "support/failing_system.hpp"

#include <nibble/io/output_file.hpp>

#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "support/catch.hpp"
#include "support/scratch.hpp"

namespace fs = std::filesystem;
using nibble::errc;
using nibble::io::file_bytes;
using nibble::io::open_mode;
using nibble::io::output_file;

namespace {

[[nodiscard]] std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span<const char>(text));
}
[[nodiscard]] bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

}  // namespace

TEST_CASE("output_file: the destination appears with commit, whole", "[io][output]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "file";
    for (const char* old : {static_cast<const char*>(nullptr), "the old content"}) {
        if (old != nullptr) CHECK(slurp(dir.write("file", old)) == old);
        auto made = output_file::create(path);
        output_file file = std::move(made).value();
        CHECK(file.partial_path().parent_path() == dir.path);
        CHECK(fs::exists(file.partial_path()));
        CHECK(file.write(bytes_of("new ")));
        CHECK(file.write({}));
        CHECK(file.write(bytes_of("content")));
        CHECK(file.size() == 11);
        CHECK(fs::exists(path) == (old != nullptr));
        if (old != nullptr) CHECK(slurp(path) == old);
        CHECK(file.commit());
        CHECK(slurp(path) == "new content");
        CHECK(dir.names().size() == 1);
        CHECK(file.write(bytes_of("more")).code() == errc::invalid_argument);
        CHECK(file.commit().code() == errc::invalid_argument);
        CHECK(slurp(path) == "new content");
        fs::remove(path);
    }
}

TEST_CASE("output_file: without commit nothing is left", "[io][output]") {
    const scratch_dir dir;
    const fs::path path = dir.write("file", "old");
    {
        auto a = output_file::create(path);
        auto b = output_file::create(path);  // two writers at once do not meet
        CHECK(a.value().partial_path() != b.value().partial_path());
        CHECK(a.value().write(bytes_of("aaa")));
        CHECK(b.value().write(bytes_of("b")));
        CHECK(dir.names().size() == 3);
        output_file moved = std::move(a).value();
        CHECK(dir.names().size() == 3);
        CHECK(b.value().commit());
    }
    CHECK(slurp(path) == "b");
    CHECK(dir.names().size() == 1);
}

TEST_CASE("output_file: what a killed process left is neither overwritten nor in the way", "[io][output]") {
    const scratch_dir dir;
    auto first = output_file::create(dir.path / "file");
    const std::string name = first.value().partial_path().string();
    const std::size_t dot = name.rfind('.') + 1;
    const fs::path next = name.substr(0, dot) + std::to_string(std::stoul(name.substr(dot)) + 1);
    static_cast<void>(dir.write(next.filename().string().c_str(), "left behind"));
    auto second = output_file::create(dir.path / "file");
    CHECK(second.value().partial_path() != next);
    CHECK(second.value().write(bytes_of("new")));
    CHECK(second.value().commit());
    CHECK(slurp(next) == "left behind");
    CHECK(slurp(dir.path / "file") == "new");
}

TEST_CASE("output_file: destinations that are no files", "[io][output]") {
    const scratch_dir dir;
    for (const fs::path& path : {dir.path, fs::path("/dev/null"), dir.path / "no" / "file"}) {
        const auto made = output_file::create(path);
        INFO(path.string());
        REQUIRE_FALSE(made.has_value());
        CHECK(contains(made.failure().message, path.string()));
    }
    CHECK(output_file::create(dir.path).failure().code == errc::io);
    CHECK(output_file::create(dir.path / "no" / "file").failure().code == errc::not_found);
    CHECK(output_file::create(std::string("a\0b", 3)).failure().code == errc::invalid_argument);
    CHECK(dir.names().empty());
}

#if NIBBLE_TEST_FAILING_SYSTEM

TEST_CASE("output_file: a full disk at every byte", "[io][output]") {
    const scratch_dir dir;
    const fs::path path = dir.write("file", "old");
    for (long room = 0; room <= 12; ++room) {
        INFO(room);
        auto made = output_file::create(path);
        output_file& file = made.value();
        failing_system::write.fail_after = room;
        const nibble::status first = file.write(bytes_of("123456"));
        const nibble::status second = file.write(bytes_of("abcdef"));
        failing_system::reset();
        CHECK(static_cast<bool>(first) == (room >= 6));
        CHECK(static_cast<bool>(second) == (room >= 12));
        if (room < 12) {
            CHECK(second.code() == errc::io);
            CHECK(contains(second.message(), std::strerror(ENOSPC)));
            CHECK(contains(second.message(), room < 6 ? "after 0 bytes" : "after 6 bytes"));
            const nibble::status third = file.commit();  // the disk has room again, but the bytes are lost
            CHECK(third.message() == second.message());
            CHECK(slurp(path) == "old");
        } else {
            CHECK(file.commit());
            CHECK(slurp(path) == "123456abcdef");
        }
        CHECK(dir.names().size() == 1);
    }
}

TEST_CASE("output_file: short and interrupted writes are gone on with", "[io][output]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "file";
    auto made = output_file::create(path);
    failing_system::reset();
    failing_system::write.at_once = 1;
    failing_system::write.interruptions = 3;
    CHECK(made.value().write(bytes_of("one by one")));
    CHECK(failing_system::write.calls == 13);
    failing_system::fsync.interruptions = 2;
    failing_system::close.interruptions = 1;
    CHECK(made.value().commit());
    CHECK(failing_system::fsync.calls == 3);
    CHECK(failing_system::close.calls == 1);  // a second one could close another file of the program
    failing_system::reset();
    CHECK(slurp(path) == "one by one");

    auto stuck = output_file::create(path);
    failing_system::write.at_once = 0;  // no progress: an error, not a loop
    CHECK(stuck.value().write(bytes_of("x")).code() == errc::io);
    failing_system::reset();
    CHECK(slurp(path) == "one by one");
}

TEST_CASE("output_file: flushing, closing and renaming may fail", "[io][output]") {
    const scratch_dir dir;
    const fs::path path = dir.write("file", "old");
    for (failing_system::call* call : {&failing_system::fsync, &failing_system::close, &failing_system::rename}) {
        auto made = output_file::create(path);
        CHECK(made.value().write(bytes_of("new")));
        call->error = EIO;
        const nibble::status s = made.value().commit();
        failing_system::reset();
        CHECK(s.code() == errc::io);
        CHECK(contains(s.message(), std::strerror(EIO)));
        CHECK(contains(s.message(), call == &failing_system::fsync   ? "flush"
                                    : call == &failing_system::close ? "close"
                                                                     : "rename"));
        CHECK(slurp(path) == "old");
        CHECK(dir.names().size() == 1);
    }
    auto made = output_file::create(path);
    CHECK(made.value().write(bytes_of("new")));
    failing_system::fsync.error = EINVAL;  // nothing to flush to
    CHECK(made.value().commit());
    failing_system::reset();
    CHECK(slurp(path) == "new");
}

TEST_CASE("file_bytes: short reads, failing reads, no mmap", "[io][output]") {
    const scratch_dir dir;
    const std::string text(100'000, 'x');
    const fs::path path = dir.write("file", text);
    failing_system::read.at_once = 4096;
    const auto whole = file_bytes::open(path, open_mode::copy);
    CHECK(failing_system::read.calls >= 24);
    failing_system::reset();
    CHECK(whole.value().bytes().size() == text.size());
    for (const long room : {0L, 1L, 99'999L}) {
        failing_system::read.fail_after = room;  // the file ends early: another program cut it
        const auto cut = file_bytes::open(path, open_mode::copy);
        failing_system::reset();
        REQUIRE_FALSE(cut.has_value());
        CHECK(cut.failure().code == errc::io);
        CHECK(contains(cut.failure().message, "got " + std::to_string(room) + " of 100000"));
    }
    failing_system::mmap.error = ENODEV;
    const auto copied = file_bytes::open(path, open_mode::map);
    failing_system::reset();
    CHECK_FALSE(copied.value().mapped());
    CHECK(copied.value().bytes().size() == text.size());
    CHECK(copied.value().bytes()[99'999] == std::byte{'x'});
}

#endif
