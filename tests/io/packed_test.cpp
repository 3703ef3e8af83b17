// Packed files: every recipe comes back bit for bit, straight from the mapping; files that lie are refused.
#include "nibble/io/packed.hpp"

#include <cinttypes>
#include <fstream>

#include <nibble/dequantize.hpp>
#include <nibble/gemm.hpp>
#include <nibble/quantize.hpp>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/scratch.hpp"

namespace {

namespace fs = std::filesystem;
namespace packed = nibble::io::packed;
namespace st = nibble::io::safetensors;
using nibble::errc;
using nibble::qmatrix;

[[nodiscard]] Eigen::MatrixXf weights(nibble::index rows, nibble::index cols, std::uint64_t stream) {
    data::random random(stream);
    Eigen::MatrixXf w(rows, cols);
    for (nibble::index i = 0; i < w.size(); ++i) w.data()[i] = static_cast<float>(random.normal());
    return w;
}

[[nodiscard]] qmatrix with_codebook(const nibble::format_handle& book) {
    static constexpr nibble::absmax rule;
    return nibble::quantize(weights(3, 32, 3), nibble::make_plan(book, rule, nibble::per_group{16}));
}

// Everything that a matrix is.
void check_same(const qmatrix& a, const qmatrix& b) {
    INFO(b.name() << " " << b.rows() << " x " << b.cols());
    CHECK(a.rows() == b.rows());
    CHECK(a.cols() == b.cols());
    CHECK(a.name() == b.name());
    CHECK(a.scheme() == b.scheme());
    CHECK(a.offset_type() == b.offset_type());
    CHECK(a.layout() == b.layout());
    CHECK(a.exponent() == b.exponent());
    CHECK(std::bit_cast<std::uint32_t>(a.tensor_scale()) == std::bit_cast<std::uint32_t>(b.tensor_scale()));
    REQUIRE(a.memory_bytes() == b.memory_bytes());
    CHECK((a.memory_bytes() == 0 || std::memcmp(a.data(), b.data(), a.memory_bytes()) == 0));
}

[[nodiscard]] std::vector<packed::named_matrix> one_of_each(nibble::index rows, nibble::index cols) {
    std::vector<packed::named_matrix> out;
    for (const nibble::recipe& r : nibble::recipes())
        out.push_back({std::string("w.") + r.name, nibble::quantize(weights(rows, cols, out.size()), nibble::make_plan(r))});
    return out;
}

// A small file with a bit of everything, as text to be spoilt.
[[nodiscard]] std::string sample(const scratch_dir& dir) {
    const std::array<float, 16> table = {-8, -5, -3, -2, -1.5f, -1, -0.5f, 0, 0.25f, 0.5f, 1, 2, 3, 4, 6, 9};
    const nibble::format_handle book = nibble::make_codebook("mine", table);
    const std::vector<packed::named_matrix> matrices = {
        {"a", nibble::quantize(weights(5, 64, 1), "q4_k")},
        {"b", nibble::quantize(weights(17, 40, 2), "nvfp4")},
        {"c", with_codebook(book)},
        {"d", nibble::quantize(weights(20, 12, 4), "fp8_per_tensor")},
    };
    const std::array<float, 3> bias = {1, 2, 3};
    const st::tensor plain{"bias", st::dtype::f32, {3}, std::as_bytes(std::span(bias)), 0};
    packed::write(dir.path / "sample", matrices, std::span(&plain, 1), {{"made", "here"}}).or_throw();
    return slurp(dir.path / "sample");
}

// The matrices point into `bytes`.
[[nodiscard]] nibble::result<packed::file> parse(const std::string& bytes) {
    auto file = st::parse(std::as_bytes(std::span(bytes)));
    if (!file) return file.failure();
    return packed::read(std::make_shared<const st::file>(std::move(file).value()));
}

// Reads all of an accepted file, for the address sanitizer.
void use(const packed::file& file) {
    for (const auto& [name, m] : file.matrices()) {
        static_cast<void>(packed::check_scales(m));
        if (m.rows() * m.cols() > 1'000'000) continue;
        const Eigen::MatrixXf y = m * Eigen::MatrixXf::Ones(m.cols(), 2);
        CHECK(y.rows() == m.rows());
    }
}

// `part` of the file's bytes replaced by another text of the same length.
[[nodiscard]] std::string with(std::string bytes, const std::string& part, const std::string& other) {
    const std::size_t at = bytes.find(part);
    REQUIRE(at != std::string::npos);
    REQUIRE(part.size() == other.size());
    return bytes.replace(at, part.size(), other);
}

#if defined(__linux__)
struct mapping {
    bool found = false, of_file = false;
    std::size_t resident = 0;  // bytes
};
// The mapping of this process that holds the address.
[[nodiscard]] mapping mapping_of(const void* address, const std::string& file_name) {
    std::ifstream maps("/proc/self/smaps");
    mapping m;
    std::string line;
    const auto wanted = reinterpret_cast<std::uintptr_t>(address);
    while (std::getline(maps, line)) {
        std::uintptr_t begin = 0, end = 0;
        char dash = 0;
        if (std::sscanf(line.c_str(), "%" SCNxPTR "%c%" SCNxPTR, &begin, &dash, &end) == 3 && dash == '-') {
            if (m.found) break;
            m.found = begin <= wanted && wanted < end;
            m.of_file = m.found && line.find(file_name) != std::string::npos;
        } else if (m.found && line.starts_with("Rss:")) {
            m.resident = std::strtoull(line.c_str() + 4, nullptr, 10) * 1024;
        }
    }
    return m;
}
#endif

}  // namespace

TEST_CASE("every recipe comes back bit for bit, mapped and copied") {
    const scratch_dir dir;
    for (const auto& [rows, cols] : {std::pair<nibble::index, nibble::index>{37, 300}, {16, 256}, {1, 1}, {0, 7}, {3, 0}, {300, 130}}) {
        const std::vector<packed::named_matrix> matrices = one_of_each(rows, cols);
        REQUIRE(packed::write(dir.path / "all", matrices));
        for (const auto how : {nibble::io::open_mode::map, nibble::io::open_mode::copy}) {
            const auto file = packed::open(dir.path / "all", how);
            if (!file) FAIL(file.failure().message);
            REQUIRE(file.value().matrices().size() == matrices.size());
            for (std::size_t i = 0; i < matrices.size(); ++i) {
                const qmatrix back = file.value().matrix(matrices[i].name).value();
                check_same(back, matrices[i].matrix);
                CHECK(&back.format() == &matrices[i].matrix.format());
                CHECK(packed::check_scales(back));
            }
        }
        // It is a file like any other, without gaps, and every matrix begins at a multiple of 64.
        const auto plain = st::open(dir.path / "all");
        CHECK(plain.value().unused_bytes() == 0);
        for (const auto& t : plain.value().tensors())
            if (t.type == st::dtype::u8) CHECK(t.offset % 64 == 0);
    }
    CHECK(dir.names().size() == 1);
}

TEST_CASE("products from the mapping are those from memory") {
    const scratch_dir dir;
    const std::vector<packed::named_matrix> matrices = one_of_each(50, 512);
    REQUIRE(packed::write(dir.path / "all", matrices));
    const auto file = packed::open(dir.path / "all").value();
    const Eigen::MatrixXf x = weights(512, 3, 99);
    for (std::size_t i = 0; i < matrices.size(); ++i) {
        INFO(matrices[i].name);
        const Eigen::MatrixXf a = file.matrices()[i].matrix * x, b = matrices[i].matrix * x;
        CHECK(std::memcmp(a.data(), b.data(), sizeof(float) * static_cast<std::size_t>(a.size())) == 0);
    }
}

#if defined(__linux__)
TEST_CASE("opening reads no weights, and matrices are the mapping") {
    const scratch_dir dir;
    const fs::path path = dir.path / "large.nibble";
    {
        const qmatrix m = nibble::quantize(weights(4096, 1024, 1), "int8_per_channel");  // 4 MB each
        std::vector<packed::named_matrix> matrices;
        for (int i = 0; i < 4; ++i) matrices.push_back({"w" + std::to_string(i), m});
        REQUIRE(packed::write(path, matrices));
    }
    std::vector<qmatrix> kept;
    {
        const auto file = packed::open(path).value();
        REQUIRE(file.mapped());
        for (const auto& [name, m] : file.matrices()) kept.push_back(file.matrix(name).value());
    }
    // The header and the numbers at the end are read, and the system may map some pages around them: 64 KiB each.
    const mapping before = mapping_of(kept[0].data(), "large.nibble");
    CHECK(before.found);
    CHECK(before.of_file);
    CHECK(before.resident > 0);
    CHECK(before.resident <= 512 * 1024);
    for (const qmatrix& m : kept) {
        CHECK(mapping_of(m.data(), "large.nibble").of_file);
        CHECK(mapping_of(m.data() + m.memory_bytes() - 1, "large.nibble").of_file);
    }
    // The matrices keep the mapping, though the file is closed, and now gone.
    fs::remove(path);
    const Eigen::MatrixXf y = kept[3] * Eigen::MatrixXf::Ones(1024, 1);
    CHECK(y.allFinite());
    CHECK(mapping_of(kept[3].data(), "large.nibble").resident > before.resident + (std::size_t{3} << 20));
    const std::uint8_t* at = kept[0].data();
    kept.clear();
    CHECK(!mapping_of(at, "large.nibble").of_file);
}
#endif

TEST_CASE("codebooks of the program come with their values") {
    const scratch_dir dir;
    const std::string bytes = sample(dir);
    const auto file = parse(bytes);
    if (!file) FAIL(file.failure().message);
    const qmatrix c = file.value().matrix("c").value();
    CHECK(std::string(c.format().name) == "mine");
    CHECK(c.format().values[0] == -8.0f);
    CHECK(c.format().values[15] == 9.0f);
    CHECK(c.format().thresholds[3] == -1.75f);
    const std::array<float, 16> table = {-8, -5, -3, -2, -1.5f, -1, -0.5f, 0, 0.25f, 0.5f, 1, 2, 3, 4, 6, 9};
    const qmatrix made = with_codebook(nibble::make_codebook("mine", table));
    check_same(c, made);
    CHECK(file.value().metadata() == st::metadata_map{{"made", "here"}});
    REQUIRE(file.value().tensors().size() == 1);
    CHECK(file.value().tensors()[0].name == "bias");

    // Equal ones are one format, so that their matrices can be put together.
    const std::vector<packed::named_matrix> two = {{"x", made}, {"y", made}};
    REQUIRE(packed::write(dir.path / "two", two));
    const auto back = packed::open(dir.path / "two").value();
    CHECK(&back.matrices()[0].matrix.format() == &back.matrices()[1].matrix.format());
    // One with the name of the library's own stays the program's.
    const std::vector<packed::named_matrix> named = {
        {"x", with_codebook(nibble::make_codebook("nf4", table))}};
    REQUIRE(packed::write(dir.path / "named", named));
    CHECK(packed::open(dir.path / "named").value().matrix("x").value().format().values[15] == 9.0f);
}

TEST_CASE("a row block is written as a matrix of its own") {
    const scratch_dir dir;
    for (const char* recipe : {"q4_k", "int4_zero_g128", "fp8_block128", "nvfp4", "fp8_per_tensor", "nf4_double"}) {
        INFO(recipe);
        const qmatrix m = nibble::quantize(weights(80, 1024, 5), recipe);  // nf4_double: 16 rows are a second-level group
        const qmatrix block = m.row_block(32, 40);
        const packed::named_matrix one{"x", block};
        REQUIRE(packed::write(dir.path / "block", std::span(&one, 1)));
        const qmatrix back = packed::open(dir.path / "block").value().matrix("x").value();
        CHECK(back.memory_bytes() < m.memory_bytes());
        const Eigen::MatrixXf a = nibble::dequantize(back), b = nibble::dequantize(block);
        CHECK((a.array() == b.array()).all());
    }
}

TEST_CASE("files that lie are refused") {
    const scratch_dir dir;
    const std::string good = sample(dir);
    REQUIRE(parse(good));
    const auto refused = [&](const std::string& part, const std::string& other, const std::string& says, errc code = errc::malformed) {
        INFO(other);
        const auto file = parse(with(good, part, other));
        REQUIRE(!file);
        INFO(file.failure().message);
        CHECK(file.failure().code == code);
        CHECK(file.failure().message.find(says) != std::string::npos);
    };
    refused(R"("nibble.layout":"1")", R"("nibble.layout":"2")", "layout version \"2\", this library reads version 1", errc::unsupported);
    refused(R"("nibble.layout":"1")", R"("nibble.lay0ut":"1")", "without packed matrices", errc::unsupported);
    refused(R"("nibble.numbers")", R"("nibble.number5")", "nibble.numbers");
    refused(R"("nibble.matrix.a")", R"("nibble.matrix.z")", "1 descriptions of matrices without a tensor");
    refused(R"(\"code\":\"int4\")", R"(\"code\":\"int9\")", "code format \"int9\" is not known");
    refused(R"(\"code\":\"int4\")", R"(\"c0de\":\"int4\")", "no \"code\"");
    refused(R"(two_level)", R"(two_evels)", "\"scale\" is \"two_evels\"");
    refused(R"(\"scale_bits\":6)", R"(\"scale_bits\":9)", "two_level scales of 9 bits");
    refused(R"(\"scale_bits\":8)", R"(\"scale_bits\":7)", "a scheme e4m3_f32 of 7 bits");
    refused(R"(\"scale_signed\":false)", R"(\"scale_signed\":10000)", "no boolean");
    refused(R"(\"span\":8)", R"(\"span\":0)", "two_level");
    refused(R"(\"minimum\")", R"(\"minimal\")", "\"offset\" is \"minimal\"");
    refused(R"(\"rows\":5)", R"(\"rows\":-)", "no JSON object");
    refused(R"(\"rows\":17)", R"(\"rows\":-3)", "\"rows\" is no integer");
    refused(R"(\"rows\":17)", R"(\"rows\":33)", "takes U8 [");
    refused(R"(\"rows\":17)", R"(\"rows\":16)", "takes U8 [");
    refused(R"(\"rows\":17)", R"(\"rows\":1.)", "no JSON object");
    refused(R"(\"rows\":17,\"cols\":40)", R"(\"rows\":99,\"cols\":9e)", "no JSON object");
    refused(R"(\"cols\":64)", R"(\"cols\":99)", "takes U8 [");
    refused(R"(\"group\":[1,32])", R"(\"group\":[1,99])", "groups of 1x99");
    refused(R"(\"group\":[1,32])", R"(\"group\":[0,32])", "groups of 0x32");
    refused(R"(\"group\":[1,32])", R"(\"group\":[132] )", "no array of two");
    refused(R"(\"number\":3)", R"(\"number\":4)", "number 4 of 4");
    refused(R"(\"recipe\":\"q4_k\")", R"(\"recipe\":[33,44] )", "\"recipe\" is no string");
    refused(R"(\"recipe\":\"q4_k\")", R"(\"recipe\":\"q4_k;;)", "no JSON object");
    refused(R"(\"number\":0})", R"(\"number\":00)", "no JSON object");
    refused("3238002688", "2139095040", "value 0 of the codebook is NaN or Inf");
    refused("3238002688", "4294967296", "no integer from 0 to 4294967295");
    refused(R"("dtype":"U8")", R"("dtype":"I8")", "the tensor is I8 [");
    // The numbers of the matrices: tensor_scale of "b", the exponent of "a".
    const std::size_t numbers = good.size() - 12 - 32;  // before the bias
    std::string bad = good;
    bad.replace(numbers + 8, 4, std::string("\x00\x00\x80\x7f", 4));
    CHECK(parse(bad).failure().message.find("\"b\": the scale of the tensor is NaN or Inf") != std::string::npos);
    CHECK(parse(bad).failure().offset == numbers + 8);
    bad = good;
    bad.replace(numbers + 4, 4, std::string("\x81\x00\x00\x00", 4));
    CHECK(parse(bad).failure().message.find("an exponent of 129") != std::string::npos);

    CHECK(packed::open(dir.path / "missing").failure().code == errc::not_found);
    const auto one = [&](const std::string& name) { return packed::open(dir.write("x", with(good, "\"nibble.layout\":\"1\"", name))); };
    CHECK(one(R"("nibble.layout":"3")").failure().message.find("x\": packed: layout version \"3\"") != std::string::npos);
}

TEST_CASE("check_scales finds what opening does not look at") {
    const scratch_dir dir;
    const std::string good = sample(dir);
    const auto file = parse(good).value();
    for (const auto& [name, m] : file.matrices()) CHECK(packed::check_scales(m));
    const auto spoilt = [&](const std::string& name, nibble::index at, const std::string& bytes) {
        std::string bad = good;
        const auto offset = static_cast<std::size_t>(file.matrix(name).value().data() - reinterpret_cast<const std::uint8_t*>(good.data()) + at);
        bad.replace(offset, bytes.size(), bytes);
        const auto again = parse(bad);
        REQUIRE(again);
        return packed::check_scales(again.value().matrix(name).value());
    };
    const auto a = file.matrix("a").value().layout(), b = file.matrix("b").value().layout();
    const std::string nan("\x00\x7e", 2);
    CHECK(spoilt("a", a.supers_at + 2 * 4, nan).message() == "the scale of row 4, group 0 is NaN or Inf");
    CHECK(spoilt("a", a.supers_at + 32 + 2 * 1, nan).message() == "the offset of row 1, group 0 is NaN or Inf");
    CHECK(spoilt("a", a.supers_at, std::string("\xff\x7b", 2)).code() == errc::malformed);  // 65504: above the exponent
    CHECK(spoilt("b", b.scales_at + 16, "\x7f").message() == "the scale of row 0, group 1 is NaN or Inf");
    CHECK(spoilt("a", a.supers_at + 2 * 5, nan));  // a row of the padding
}

TEST_CASE("a file cut anywhere, and every bit of its header flipped") {
    const scratch_dir dir;
    const std::string good = sample(dir);
    for (std::size_t size = 0; size < good.size(); ++size) REQUIRE(!parse(good.substr(0, size)));
    std::uint64_t header = 0;
    std::memcpy(&header, good.data(), 8);
    int accepted = 0, refused = 0;
    for (std::size_t bit = 0; bit < 8 * (8 + header); ++bit) {
        std::string bad = good;
        bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
        const auto file = parse(bad);
        ++(file ? accepted : refused);
        if (file) use(file.value());
        else if (file.failure().message.size() > 2500) FAIL(file.failure().message);
    }
    CHECK(accepted > 100);  // names and texts
    CHECK(refused > 1000);
}

TEST_CASE("a writer refuses what does not fit, and the old file stays") {
    const scratch_dir dir;
    const fs::path path = dir.path / "f";
    const qmatrix a = nibble::quantize(weights(4, 64, 1), "q4_k");
    const packed::named_matrix one{"a", a};
    REQUIRE(packed::write(path, std::span(&one, 1)));
    const std::string before = slurp(path);

    packed::writer out;
    CHECK(out.set("nibble.x", "y").code() == errc::invalid_argument);
    REQUIRE(out.add_matrix("a", a));
    CHECK(!out.add_matrix("a", a));
    CHECK(!out.add_matrix("nibble.numbers", a));
    CHECK(!out.add_tensor("nibble.numbers", st::dtype::f32, {2}));
    REQUIRE(out.add_matrix("b", 4, 64, *nibble::find_recipe("q6_k")));
    REQUIRE(out.add_tensor("t", st::dtype::f32, {1}));
    CHECK(!out.write(a));
    REQUIRE(out.create(path));
    CHECK(!out.add_tensor("u", st::dtype::f32, {1}));
    CHECK(!out.write(std::as_bytes(std::span("abc"))));
    CHECK(!out.finish());
    REQUIRE(out.write(a));
    CHECK(out.write(a).code() == errc::shape_mismatch);
    CHECK(out.write(nibble::quantize(weights(4, 65, 1), "q6_k")).code() == errc::shape_mismatch);
    REQUIRE(out.write(nibble::quantize(weights(4, 64, 1), "q6_k")));
    CHECK(!out.finish());
    CHECK(slurp(path) == before);
    const float x = 1;
    CHECK(!out.write(std::as_bytes(std::span("too many"))));
    REQUIRE(out.write(std::as_bytes(std::span(&x, 1))));
    REQUIRE(out.finish());
    CHECK(slurp(path) != before);
    CHECK(packed::open(path).value().matrix("b"));
    CHECK(dir.names().size() == 1);
}
