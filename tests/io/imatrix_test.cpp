// Importance matrices: both forms against bytes made by hand, round trips, and files that lie.
#include "nibble/io/imatrix.hpp"

#include <nibble/quantize.hpp>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/gguf_bytes.hpp"
#include "support/scratch.hpp"

namespace {

namespace imatrix = nibble::io::imatrix;
using gguf_bytes::raw;
using gguf_bytes::u32;
using nibble::errc;

[[nodiscard]] nibble::result<imatrix::file> read(const std::string& bytes) {
    const gguf_bytes::exact memory(bytes);
    return imatrix::read(memory.span());
}
[[nodiscard]] std::string floats(std::initializer_list<float> values) {
    std::string out;
    for (const float x : values) out += raw(x);
    return out;
}
[[nodiscard]] std::string name(const std::string& text) { return u32(static_cast<std::uint32_t>(text.size())) + text; }

// Two weights, in an order that is not that of their names.
[[nodiscard]] std::string legacy() {
    return u32(2) + name("blk.1.up") + u32(4) + u32(3) + floats({4, 8, 2}) + name("blk.0.down") + u32(0) + u32(2) + floats({0, 0}) +
           u32(7) + name("wiki.raw");
}
// A dense weight, and one of two experts, of which no token reached the second.
[[nodiscard]] std::string modern() {
    gguf_bytes::file f;
    f.text("general.type", "imatrix").entry("imatrix.datasets", 9, gguf_bytes::array(8, 2, gguf_bytes::text("a").append(gguf_bytes::text("b"))));
    f.number<std::uint32_t>("imatrix.chunk_count", 4, 9).number<std::uint32_t>("imatrix.chunk_size", 4, 512);
    f.tensor("up.in_sum2", {3, 1}, 0, 0).tensor("up.counts", {1, 1}, 0, 32);
    f.tensor("experts.in_sum2", {2, 2}, 0, 64).tensor("experts.counts", {1, 2}, 0, 96);
    std::string data(128, '\0');
    data.replace(0, 12, floats({10, 20, 5}));
    data.replace(32, 4, floats({5}));
    data.replace(64, 16, floats({3, 6, 0, 0}));
    data.replace(96, 8, floats({3, 0}));
    return f.bytes(data);
}

[[nodiscard]] std::vector<float> weights(const imatrix::file& f, const char* entry, nibble::index cols, nibble::index which = 0) {
    const imatrix::entry* e = f.find(entry);
    REQUIRE(e != nullptr);
    return imatrix::weights(*e, cols, which).value();
}

}  // namespace

TEST_CASE("the legacy form") {
    const auto f = read(legacy());
    if (!f) FAIL(f.failure().message);
    CHECK(f.value().entries.size() == 2);
    CHECK(f.value().chunks == 7);
    CHECK(f.value().datasets == std::vector<std::string>{"wiki.raw"});
    CHECK(weights(f.value(), "blk.1.up", 3) == std::vector<float>{1, 2, 0.5f});
    CHECK(weights(f.value(), "blk.0.down", 2) == std::vector<float>{1, 1});
    CHECK(f.value().find("blk.0.up") == nullptr);

    // Older files end after the entries.
    const std::string old = legacy().substr(0, legacy().size() - 16);
    CHECK(read(old).value().chunks == 0);
    CHECK(read(old).value().datasets.empty());

    const scratch_dir dir;
    REQUIRE(imatrix::write_legacy(dir.path / "again", f.value()));
    const auto again = imatrix::open(dir.path / "again").value();
    CHECK(weights(again, "blk.1.up", 3) == std::vector<float>{1, 2, 0.5f});
    CHECK(again.datasets == f.value().datasets);
    CHECK(again.chunks == 7);
    CHECK(slurp(dir.path / "again").size() == legacy().size());
}

TEST_CASE("the GGUF form, and from one to the other") {
    const auto f = read(modern());
    if (!f) FAIL(f.failure().message);
    CHECK(f.value().chunks == 9);
    CHECK(f.value().chunk_size == 512);
    CHECK(f.value().datasets == std::vector<std::string>{"a", "b"});
    CHECK(weights(f.value(), "up", 3) == std::vector<float>{2, 4, 1});
    CHECK(weights(f.value(), "experts", 2) == std::vector<float>{1, 2});
    CHECK(weights(f.value(), "experts", 2, 1) == std::vector<float>{1, 1});
    const imatrix::entry& experts = *f.value().find("experts");
    for (const auto& [cols, which] : {std::pair<nibble::index, nibble::index>{4, 0}, {2, 2}, {2, -1}, {0, 0}, {3, 0}, {1, 0}, {-2, 0}, {PTRDIFF_MAX, 1}})
        CHECK(imatrix::weights(experts, cols, which).failure().code == errc::shape_mismatch);

    const scratch_dir dir;
    REQUIRE(imatrix::write(dir.path / "gguf", f.value()));
    const auto again = imatrix::open(dir.path / "gguf").value();
    CHECK(again.datasets == f.value().datasets);
    CHECK(again.chunk_size == 512);
    for (const auto& e : f.value().entries) {
        CHECK(again.find(e.name)->sums == e.sums);
        CHECK(again.find(e.name)->counts == e.counts);
    }
    REQUIRE(imatrix::write_legacy(dir.path / "legacy", f.value()));
    const auto old = imatrix::open(dir.path / "legacy").value();
    CHECK(weights(old, "up", 3) == std::vector<float>{2, 4, 1});
    CHECK(weights(old, "experts", 2) == std::vector<float>{1, 2});
    CHECK(weights(old, "experts", 2, 1) == std::vector<float>{1, 1});
    CHECK(old.datasets == std::vector<std::string>{"a"});
    CHECK(dir.names().size() == 2);
}

TEST_CASE("what quantize() makes of them") {
    const Eigen::MatrixXf w = data::matrix(4, 256, 1);
    imatrix::entry e{"w", std::vector<float>(256, 3.0f), {3.0f}};
    for (int k = 0; k < 256; k += 5) e.sums[static_cast<std::size_t>(k)] = 3000.0f;
    const std::vector<float> im = imatrix::weights(e, 256).value();
    const auto error = [&](const nibble::qmatrix& m) {
        double sum = 0;
        for (int n = 0; n < 4; ++n)
            for (int k = 0; k < 256; ++k) sum += static_cast<double>(im[static_cast<std::size_t>(k)]) * std::pow(m(n, k) - w(n, k), 2.0);
        return sum;
    };
    CHECK(error(nibble::quantize(w, "q4_k", {.importance = im})) < 0.9 * error(nibble::quantize(w, "q4_k")));
}

TEST_CASE("files that lie are refused") {
    const auto says = [](const std::string& bytes, const std::string& part) {
        const auto f = read(bytes);
        REQUIRE(!f);
        INFO(f.failure().message);
        CHECK(f.failure().message.find(part) != std::string::npos);
    };
    const std::string good = legacy();
    const auto with = [&](std::size_t at, const std::string& part) { return std::string(good).replace(at, part.size(), part); };
    says("", "the number of entries: the file ends");
    says(with(0, u32(0)), "the number of entries: 0");
    says(with(0, u32(0xffffffffu)), "the number of entries: -1");
    says(with(0, u32(1000)), "the number of entries: 1000, the file has");
    says(with(0, u32(3)), "entry 2, ");
    says(with(4, u32(0x7fffffffu)), "entry 0, length: 2147483647, the file has");
    says(with(4, u32(0)), "entry 0, ");
    says(with(16, u32(0x80000000u)), "entry 0, calls: -2147483648");
    says(with(20, u32(0x40000000u)), "entry 0, values: 1073741824");
    says(with(20, u32(0)), "entry 0, values: 0");
    says(with(24, floats({-1})), "entry \"blk.1.up\": sum 0 is negative, NaN or Inf");
    says(with(28, u32(0x7fc00000u)), "sum 1 is negative, NaN or Inf");
    says(with(28, u32(0x7f800000u)), "sum 1 is negative, NaN or Inf");
    says(good + "x", "1 bytes after the end");
    says(u32(2) + name("a") + u32(1) + u32(1) + floats({1}) + name("a") + u32(1) + u32(1) + floats({1}), "\"a\": it is there twice");
    says(u32(1) + name("a") + u32(1) + u32(1) + floats({1}) + u32(1) + u32(5) + "ab", "the dataset, length: 5, the file has 2 more bytes");

    const std::string g = modern();
    const auto gguf = [&](const std::string& part, const std::string& other) { return std::string(g).replace(g.find(part), part.size(), other); };
    says(gguf("imatrix", "1matrix"), "general.type is not \"imatrix\"");
    says(gguf("up.counts", "up.cuonts"), "\"up\": sums without counts");
    says(gguf("up.in_sum2", "up.in_sum3"), "\"up\": counts without sums");
    says(gguf(gguf_bytes::text("up.counts") + u32(2) + raw(std::uint64_t{1}) + raw(std::uint64_t{1}) + u32(0),
              gguf_bytes::text("up.counts") + u32(2) + raw(std::uint64_t{1}) + raw(std::uint64_t{2}) + u32(0)), "expected F32 [matrices, K]");
    says(gguf(gguf_bytes::text("up.counts") + u32(2) + raw(std::uint64_t{1}) + raw(std::uint64_t{1}) + u32(0),
              gguf_bytes::text("up.counts") + u32(2) + raw(std::uint64_t{1}) + raw(std::uint64_t{1}) + u32(1)), "counts F16");
    says(std::string(g).replace(g.size() - 96, 4, u32(0x7fc00000u)), "count 0 is negative, NaN or Inf");
    CHECK(imatrix::weights({"x", {3e38f}, {0.1f}}, 1).failure().code == errc::out_of_range);
}

TEST_CASE("files cut anywhere, and every bit flipped") {
    for (const std::string& good : {legacy(), modern()}) {
        int accepted = 0;
        for (std::size_t size = 0; size < good.size(); ++size) accepted += read(good.substr(0, size)) ? 1 : 0;
        CHECK(accepted == (good == legacy() ? 2 : 24));  // without the trailer or the dataset; without padding after the last tensor
        for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
            std::string bad = good;
            bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
            const auto f = read(bad);
            if (!f && (f.failure().message.empty() || f.failure().message.size() > 2500)) FAIL(f.failure().message);
            if (!f) continue;
            for (const auto& e : f.value().entries)
                for (const float x : e.sums)
                    if (!(x >= 0.0f && x < HUGE_VALF)) FAIL("bit " << bit);
        }
    }
}

TEST_CASE("what cannot be written is refused, and nothing is touched") {
    const scratch_dir dir;
    const auto refused = [&](std::vector<imatrix::entry> entries) {
        imatrix::file f;
        f.entries = std::move(entries);
        CHECK(imatrix::write(dir.path / "f", f).code() == errc::invalid_argument);
        CHECK(imatrix::write_legacy(dir.path / "f", f).code() == errc::invalid_argument);
        CHECK(dir.names().empty());
    };
    refused({{"a", {1}, {1}}, {"a", {1}, {1}}});
    refused({{"", {1}, {1}}});
    refused({{"a", {}, {1}}});
    refused({{"a", {1, 2, 3}, {1, 2}}});
    refused({{"a", {-1}, {1}}});
    refused({{"a", {1}, {std::numeric_limits<float>::quiet_NaN()}}});
}
