// The GGUF reader and writer against bytes and memory that are out to hurt them: files cut at any byte, any bit flipped, any
// field at its extremes, judged by a second reader; allocations that fail; how much is allocated.
#include "support/failing_allocations.hpp"

#include <nibble/io/gguf.hpp>
#include <nibble/io/gguf_writer.hpp>

#include <cstdint>
#include <ctime>
#include <new>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/gguf_bytes.hpp"
#include "support/gguf_promises.hpp"
#include "support/scratch.hpp"

namespace fs = std::filesystem;
namespace gguf = nibble::io::gguf;
namespace ggml = nibble::io::ggml;
using gguf_bytes::exact;
using gguf_bytes::u32;
using gguf_bytes::u64;

namespace {

[[nodiscard]] fs::path golden_path(const std::string& stem) {
    return fs::path(NIBBLE_TEST_DATA_DIR) / "gguf" / (stem + ".gguf");
}

struct verdict {
    bool accepted = false;
    std::string broken;  // the promise that does not hold
};

// Reads the bytes and checks everything that can be checked. Decodes the tensors that are not those of `original`.
verdict judge(const std::string& bytes, const gguf::file* original = nullptr) {
    const exact memory(bytes);
    failing_allocations::asked = failing_allocations::largest = 0;
    const auto read = gguf::read(memory.span());
    const std::size_t asked = failing_allocations::asked;
    verdict v;
    v.accepted = read.has_value();
    // An allocation of the reader's own is in proportion to the header; a message has at most two names of 480 characters.
    if (asked > 8 * bytes.size() + 8192) v.broken = "asked for " + std::to_string(asked) + " bytes";
    if (!v.accepted) {
        const nibble::failure& why = read.failure();
        if (why.message.empty() || why.message.size() > 2500 || why.offset > bytes.size()) v.broken = "failure: " + why.message;
    } else {
        v.broken = gguf_promises::broken(read.value(), memory.span());
        const auto& tensors = read.value().tensors();
        for (std::size_t i = 0; i < tensors.size() && v.broken.empty(); ++i) {
            const gguf::tensor* same = original != nullptr && i < original->tensors().size() ? &original->tensors()[i] : nullptr;
            if (same == nullptr || same->type != tensors[i].type || same->ne != tensors[i].ne || same->offset != tensors[i].offset)
                v.broken = gguf_promises::decode(tensors[i]);
        }
    }
    if (v.broken.empty() && v.accepted != gguf_promises::second_reader(bytes).accepts())
        v.broken = v.accepted ? "accepted" : "refused: " + read.failure().message;
    return v;
}

}  // namespace

TEST_CASE("gguf: a file cut at any byte", "[io][gguf][hostile]") {
    for (const char* stem : {"default_alignment", "alignment_64", "big_endian"}) {
        const std::string whole = slurp(golden_path(stem));
        REQUIRE(whole.size() > 1000);
        std::size_t accepted = 0;
        for (std::size_t size = 0; size <= whole.size(); ++size) {
            const verdict v = judge(whole.substr(0, size));
            if (!v.broken.empty()) FAIL(stem << " cut at " << size << ": " << v.broken);
            accepted += v.accepted ? 1u : 0u;
        }
        // alignment_64 ends in 32 bytes of padding that no tensor needs
        CHECK(accepted == (stem == std::string("big_endian") ? 0u : stem == std::string("alignment_64") ? 33u : 1u));
    }
}

TEST_CASE("gguf: every bit of the headers flipped", "[io][gguf][hostile]") {
    for (const char* stem : {"default_alignment", "alignment_64", "big_endian"}) {
        const std::string whole = slurp(golden_path(stem));
        const std::size_t header = stem == std::string("big_endian") ? 1088 : stem == std::string("alignment_64") ? 2048 : 2016;
        const exact memory(whole);
        const auto original = gguf::read(memory.span());
        int accepted = 0;
        int refused = 0;
        for (std::size_t bit = 0; bit < 8 * header; ++bit) {
            std::string bytes = whole;
            bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
            const verdict v = judge(bytes, original ? &original.value() : nullptr);
            if (!v.broken.empty()) FAIL(stem << ", bit " << bit % 8 << " of byte " << bit / 8 << ": " << v.broken);
            ++(v.accepted ? accepted : refused);
        }
        CHECK(refused > 1000);
        CHECK((accepted > 1000) == (stem != std::string("big_endian")));
    }
}

TEST_CASE("gguf: extreme numbers at every byte of the header", "[io][gguf][hostile]") {
    const std::string whole = slurp(golden_path("default_alignment"));
    constexpr std::uint64_t extremes[] = {0,
                                          1,
                                          0xff,
                                          0x7fffffff,
                                          0x80000000,
                                          0xffffffff,
                                          std::uint64_t{1} << 32,
                                          std::uint64_t{1} << 60,
                                          (std::uint64_t{1} << 61) + 1,
                                          std::uint64_t{1} << 62,
                                          ~std::uint64_t{0} >> 1,
                                          std::uint64_t{1} << 63,
                                          ~std::uint64_t{0} - 31,
                                          ~std::uint64_t{0} - 7,
                                          ~std::uint64_t{0}};
    const exact memory(whole);
    const auto original = gguf::read(memory.span());
    int cases = 0;
    for (std::size_t at = 4; at + 8 <= 2016; ++at) {
        for (const std::uint64_t u : extremes) {
            const verdict v = judge(std::string(whole).replace(at, 8, u64(u)), &original.value());
            if (!v.broken.empty()) FAIL(u << " at byte " << at << ": " << v.broken);
            ++cases;
        }
    }
    CHECK(cases == 2005 * 15);
}

TEST_CASE("gguf: the densest headers cost a small multiple of their size", "[io][gguf][hostile]") {
    const auto cost_of = [](const std::string& bytes) {
        const exact memory(bytes);
        failing_allocations::asked = 0;
        const std::clock_t before = std::clock();
        const auto file = gguf::read(memory.span());
        const double seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
        CHECK(file.has_value());
        CHECK(seconds < 10.0);
        return static_cast<double>(failing_allocations::asked) / static_cast<double>(bytes.size());
    };
    gguf_bytes::file entries;
    for (int i = 0; i < 100'000; ++i) {
        const char key[] = {static_cast<char>('!' + i % 90), static_cast<char>('!' + i / 90 % 90), static_cast<char>('!' + i / 8100)};
        entries.entry(std::string_view(key, 3), 0, "x");
    }
    CHECK(cost_of(entries.bytes()) < 8.0);
    gguf_bytes::file tensors;
    for (int i = 0; i < 100'000; ++i) tensors.tensor(std::to_string(i), {0}, 0, 0);
    CHECK(cost_of(tensors.bytes()) < 8.0);
    // many small arrays, which are walked
    std::string inner;
    for (int i = 0; i < 500'000; ++i) inner += gguf_bytes::array(0, 0, "");
    CHECK(cost_of(gguf_bytes::file().entry("k", 9, gguf_bytes::array(9, 500'000, inner)).bytes()) < 1.0);
    // names that differ at their end only
    gguf_bytes::file long_names;
    const std::string prefix(4000, 'n');
    for (int i = 0; i < 2'000; ++i) long_names.tensor(prefix + std::to_string(i), {0}, 0, 0);
    CHECK(cost_of(long_names.bytes()) < 8.0);

    // a count that the rest of the file has no room for costs nothing
    gguf_bytes::file lie;
    lie.tensors = 1'000'000;
    const std::string small = lie.bytes();
    const exact memory(small);
    failing_allocations::largest = 0;
    CHECK_FALSE(gguf::read(memory.span()).has_value());
    CHECK(failing_allocations::largest < 1000);
}

TEST_CASE("gguf: memory that runs out at any allocation", "[io][gguf][hostile]") {
    const fs::path path = golden_path("default_alignment");
    const std::string good = slurp(path);
    std::string bad = good;
    bad[8] = 100;  // tensors that are not there
    const auto read_all = [&](const fs::path& from, nibble::io::open_mode how) {
        const auto file = gguf::open(from, how);
        if (!file) return file.failure().code != nibble::errc::io;  // io: no memory for the copy of the file
        for (const gguf::tensor& t : file.value().tensors()) {
            if (t.values().value().size() != t.elements()) return false;
            if (ggml::is_supported(t.type)) static_cast<void>(t.matrix().value());
        }
        return true;
    };
    const scratch_dir dir;
    const fs::path bad_path = dir.write("bad.gguf", bad);
    static_cast<void>(read_all(path, nibble::io::open_mode::map));  // what is allocated once and for all
    for (const auto how : {nibble::io::open_mode::map, nibble::io::open_mode::copy}) {
        for (const fs::path& from : {path, bad_path}) {
            long n = 0;
            bool done = false;
            for (; !done; ++n) {
                const long live = failing_allocations::live;
                try {
                    const failing_allocations::limit limit(n);
                    done = read_all(from, how);
                } catch (const std::bad_alloc&) {
                    done = false;
                }
                if (failing_allocations::live != live) FAIL("a leak after " << n << " allocations");
                REQUIRE(n < 10'000);
            }
            CHECK(n > (from == path ? 20 : 2));
        }
    }
}

TEST_CASE("gguf writer: memory that runs out at any allocation leaves the old file", "[io][gguf][hostile]") {
    const scratch_dir dir;
    const fs::path path = dir.write("file.gguf", "old");
    const auto source = gguf::open(golden_path("default_alignment"));
    const gguf::tensor& t = *source.value().at("blk.0.q4_k.weight").value();
    const nibble::qmatrix m = t.matrix().value();
    const auto write = [&] {
        gguf::writer out;
        for (const gguf::metadata_entry& e : source.value().metadata())
            if (!out.set(e.key, e.value)) return false;
        return out.add_tensor("w", t.type, t.shape()) && out.create(path) && out.write(m) && out.finish();
    };
    long n = 0;
    bool done = false;
    for (; !done; ++n) {
        const long live = failing_allocations::live;
        try {
            const failing_allocations::limit limit(n);
            done = write();
        } catch (const std::bad_alloc&) {
            done = false;
        }
        if (failing_allocations::live != live) FAIL("a leak after " << n << " allocations");
        if (dir.names().size() != 1) FAIL("a partial file after " << n << " allocations");
        if (!done && slurp(path) != "old") FAIL("a new file after " << n << " allocations");
        REQUIRE(n < 10'000);
    }
    CHECK(n > 20);
    const auto back = gguf::open(path);
    CHECK(back.value().at("w").value()->bytes.size() == t.bytes.size());
}
