// docs/formats.md is true: its tables are compared with the library's lists row by row, and its examples are computed
// again. An example is a fenced block that begins with ```hex and what it shows:
//
//   codes FORMAT COLUMNS    one panel, code (r + k + k / 4) mod 2^bits: lines of "offset bytes", not all of them
//   line BITS               a line of 16 packed integers, lane r = 3 r mod 2^bits
//   quantize RECIPE ...     "weights" (a line for each row), then all that the matrix stores; "group N" and "scale NAME"
//                           change the recipe; "at" shows memory, "rest 00" says that the other bytes are zero, "file"
//                           is the GGUF tensor
//   encode FORMAT           lines of "value code decoded"
//   dynamic_map             lines of "code bits value"
//   block TYPE              a GGUF block: code (i + i / 16 + i / 32) mod the number of codes; scales as expected_block() says
//
// For each of them expected() says what the lines should be; a line that begins with a space continues the one before.
// A ```cpp block must stand in this file as it is.
#include <nibble/io/ggml_blocks.hpp>
#include <nibble/nibble.hpp>

#include <Eigen/Core>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using nibble::index;
using lines = std::vector<std::string>;

#if defined(NIBBLE_SOURCE_DIR)
const std::string source_dir = NIBBLE_SOURCE_DIR;
#else
const std::string source_dir = std::string(NIBBLE_TEST_DATA_DIR) + "/../..";
#endif

// --- the two functions of the document -----------------------------------------------------------------------------

// The code of row r (0 .. 15) at position p of a panel; any width but 16 bits.
unsigned code_at(const std::uint8_t* panel, int bits, int r, std::ptrdiff_t p) {
    const std::uint8_t* cells = panel + p / 32 * 64 * bits;  // 32 positions fill `bits` cells
    const int within = static_cast<int>(p % 32);
    unsigned code = 0;
    int done = 0;
    for (const int plane : {8, 4, 2, 1}) {
        if ((bits & plane) == 0) continue;
        const int per_cell = 32 / plane;  // positions in one cell of this plane
        const unsigned byte = cells[within / per_cell * 64 + 4 * r + within % 4];
        const int shift = plane * (within % per_cell / 4);
        code |= ((byte >> shift) & ((1u << plane) - 1)) << done;
        cells += 64 * plane;
        done += plane;
    }
    return code;
}

// Lane r (0 .. 15) of a line of 16 integers of 1 to 8 bits.
unsigned lane_at(const std::uint8_t* line, int bits, int r) {
    unsigned value = 0;
    int done = 0;
    for (const int plane : {8, 4, 2, 1}) {
        if ((bits & plane) == 0) continue;
        const int length = 2 * plane;  // bytes of this plane
        const unsigned byte = line[r % length];
        value |= ((byte >> (plane * (r / length))) & ((1u << plane) - 1)) << done;
        line += length;
        done += plane;
    }
    return value;
}

// --- text ----------------------------------------------------------------------------------------------------------

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    INFO(path);
    REQUIRE(file.good());
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

lines words_of(const std::string& text) {
    std::istringstream stream(text);
    lines words;
    for (std::string word; stream >> word;) words.push_back(word);
    return words;
}

std::string join(const lines& parts, const std::string& between = " ") {
    std::string text;
    for (const std::string& part : parts) text += (text.empty() ? "" : between) + part;
    return text;
}

std::string decimal(long long i) { return std::to_string(i); }

std::string fixed(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%.4f", x);
    return text;
}

// The shortest decimal that reads back as x.
std::string number(float x) {
    std::string shortest;
    for (int digits = 1; digits <= 9; ++digits) {
        char text[40];
        std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(x));
        if (std::strtof(text, nullptr) == x && (shortest.empty() || std::strlen(text) < shortest.size())) shortest = text;
    }
    return shortest;
}

float parse(const std::string& word) { return std::strtof(word.c_str(), nullptr); }

std::string hex(std::size_t u, int bits) {
    std::string text;
    for (int shift = (bits + 3) / 4 * 4 - 4; shift >= 0; shift -= 4) text += "0123456789abcdef"[(u >> shift) & 15];
    return text;
}

std::string bytes_text(const std::uint8_t* bytes, std::size_t count) {
    lines parts;
    for (std::size_t i = 0; i < count; ++i) parts.push_back(hex(bytes[i], 8));
    return join(parts);
}

// --- the document ----------------------------------------------------------------------------------------------------

struct block {
    std::string header;  // what stands behind ```
    lines body;
};

struct document {
    std::vector<block> blocks;
    std::map<std::string, std::vector<lines>> tables;  // by the first word of the head; rows of cells
};

// "| a | `b` |" as {"a", "b"}.
lines cells_of(const std::string& row) {
    lines cells;
    std::string cell;
    for (std::size_t i = 1; i < row.size(); ++i) {
        if (row[i] == '|') {
            cells.push_back(join(words_of(cell)));
            cell.clear();
        } else if (row[i] != '`') {
            cell += row[i];
        }
    }
    return cells;
}

document parse_document(const std::string& text) {
    document d;
    std::istringstream stream(text);
    bool inside = false;
    std::vector<lines>* table = nullptr;
    for (std::string line; std::getline(stream, line);) {
        if (line.rfind("```", 0) == 0) {
            inside = !inside;
            if (inside) d.blocks.push_back({line.substr(3), {}});
        } else if (inside) {
            d.blocks.back().body.push_back(line);
        } else if (!line.empty() && line[0] == '|') {
            const lines cells = cells_of(line);
            if (table == nullptr) table = &d.tables[cells[0]];
            else if (cells[0].find("--") == std::string::npos) table->push_back(cells);
        } else {
            table = nullptr;
        }
    }
    return d;
}

const document& formats_md() {
    static const document d = parse_document(read_text(source_dir + "/docs/formats.md"));
    return d;
}

// Continued lines joined, runs of blanks as one.
lines tidy(const lines& body) {
    lines all;
    for (const std::string& line : body) {
        const std::string text = join(words_of(line));
        if (!line.empty() && line[0] == ' ' && !all.empty()) all.back() += " " + text;
        else all.push_back(text);
    }
    return all;
}

// --- examples --------------------------------------------------------------------------------------------------------

// The lines "offset bytes" that `shown` has, with the bytes of `memory`.
lines dump(const lines& shown, const std::string& label, const std::uint8_t* memory, std::size_t size, std::vector<bool>& seen) {
    lines all;
    seen.assign(size, false);
    const std::size_t skip = label.empty() ? 0 : 1;
    for (const std::string& line : shown) {
        const lines words = words_of(line);
        if (words.size() < 2 + skip || (skip == 1 && words[0] != label)) continue;
        const std::size_t at = std::strtoul(words[skip].c_str(), nullptr, 16);
        const std::size_t count = words.size() - skip - 1;
        if (at + count > size) {
            all.push_back("there are " + hex(size, 16) + " bytes");
            continue;
        }
        for (std::size_t i = at; i < at + count; ++i) seen[i] = true;
        all.push_back((skip == 1 ? label + " " : "") + hex(at, 16) + " " + bytes_text(memory + at, count));
    }
    return all;
}

lines expected_codes(const lines& header, const lines& shown) {
    const nibble::code_format* f = nibble::find_format(header.at(2));
    if (f == nullptr) return {"no such format"};
    const index cols = std::atoi(header.at(3).c_str());
    nibble::qmatrix_builder builder(16, cols, *f, f->bits == 16 ? nibble::scales::none : nibble::scales::f32,
                                    nibble::offset_kind::none, nibble::per_channel{});
    const auto code = [&](index r, index k) { return static_cast<unsigned>(r + k + k / 4) % f->code_count(); };
    for (index r = 0; r < 16; ++r)
        for (index k = 0; k < cols; ++k) builder.set_code(r, k, code(r, k));
    const nibble::qmatrix m = std::move(builder).finish();
    for (index r = 0; r < 16 && f->bits != 16; ++r)
        for (index k = 0; k < cols; ++k)
            if (code_at(m.panel(0), f->bits, static_cast<int>(r), k) != code(r, k)) return {"code_at is wrong"};
    std::vector<bool> seen;
    return dump(shown, "", m.panel(0), static_cast<std::size_t>(m.layout().panel_bytes), seen);
}

lines expected_line(const lines& header, const lines& shown) {
    const int bits = std::atoi(header.at(2).c_str());
    nibble::qmatrix_builder builder(16, 4, nibble::int4::format, nibble::scales::two_level(bits, false, 1),
                                    nibble::offset_kind::none, nibble::per_group{4});
    for (index r = 0; r < 16; ++r) builder.set_scale(r, 0, static_cast<std::uint32_t>(3 * r) % (1u << bits));
    const nibble::qmatrix m = std::move(builder).finish();
    const std::uint8_t* line = m.data() + m.layout().scales_at;
    for (int r = 0; r < 16; ++r)
        if (lane_at(line, bits, r) != static_cast<unsigned>(3 * r) % (1u << bits)) return {"lane_at is wrong"};
    std::vector<bool> seen;
    return dump(shown, "", line, static_cast<std::size_t>(m.layout().scale_line), seen);
}

bool has(const lines& shown, const std::string& label) {
    for (const std::string& line : shown)
        if (line.rfind(label + " ", 0) == 0) return true;
    return false;
}

lines expected_quantize(const lines& header, const lines& shown) {
    using nibble::scale_storage;
    const nibble::recipe* r = nibble::find_recipe(header.at(2));
    if (r == nullptr) return {"no such recipe"};
    nibble::quantize_plan plan = nibble::make_plan(*r);
    for (std::size_t i = 3; i + 1 < header.size(); i += 2) {
        if (header[i] == "group") plan.group = nibble::per_group{std::atoi(header[i + 1].c_str())};
        for (const nibble::scale_scheme& s : {nibble::scales::f32, nibble::scales::f16, nibble::scales::bf16})
            if (header[i] == "scale" && header[i + 1] == name_of(s.storage)) plan.scale = s;
    }
    std::vector<std::vector<float>> weights;
    lines all;
    for (const std::string& line : shown) {
        const lines words = words_of(line);
        if (words.empty() || words[0] != "weights") continue;
        all.push_back(line);
        weights.emplace_back();
        for (std::size_t i = 1; i < words.size(); ++i) weights.back().push_back(parse(words[i]));
        if (weights.back().size() != weights[0].size()) return {"rows of different length"};
    }
    if (weights.empty()) return {"no weights"};
    Eigen::MatrixXf w(static_cast<index>(weights.size()), static_cast<index>(weights[0].size()));
    for (index n = 0; n < w.rows(); ++n)
        for (index k = 0; k < w.cols(); ++k) w(n, k) = weights[static_cast<std::size_t>(n)][static_cast<std::size_t>(k)];
    const nibble::qmatrix m = nibble::quantize(w, plan);

    const nibble::detail::layout& l = m.layout();
    const bool two_level = m.scheme().storage == scale_storage::two_level;
    for (index n = 0; n < m.rows(); ++n) {
        lines scale = {"scale"}, offset = {"offset"}, super = {"super"}, code = {"codes"}, decoded = {"decoded"};
        for (index g = 0; g < m.groups(); ++g) {
            scale.push_back(hex(m.stored_scale(n, g), l.scale_bits));
            offset.push_back(hex(m.stored_offset(n, g), l.offset_bits));
        }
        for (index s = 0; two_level && s < l.supers; ++s) {
            super.push_back(hex(m.stored_super(n, s), 16));
            if (m.offset_type() == nibble::offset_kind::minimum) super.push_back(hex(m.stored_super(n, s, true), 16));
        }
        for (index k = 0; k < m.cols(); ++k) {
            code.push_back(hex(m.code(n, k), m.format().bits));
            decoded.push_back(number(m(n, k)));
        }
        if (l.scale_bits != 0) all.push_back(join(scale));
        if (l.offset_bits != 0) all.push_back(join(offset));
        if (two_level) all.push_back(join(super));
        all.push_back(join(code));
        all.push_back(join(decoded));
    }
    if (m.scheme().storage == scale_storage::double_quantized) {
        lines nested = {"nested"};
        for (index s = 0; s < l.supers; ++s) nested.push_back(hex(std::bit_cast<std::uint32_t>(m.nested_absmax(s)), 32));
        all.push_back(join(nested));
    }
    if (m.scheme().storage == scale_storage::double_quantized || m.scheme().storage == scale_storage::e4m3_f32)
        all.push_back("tensor " + hex(std::bit_cast<std::uint32_t>(m.tensor_scale()), 32));
    if (has(shown, "at")) {
        std::vector<bool> seen;
        for (const std::string& line : dump(shown, "at", m.data(), m.memory_bytes(), seen)) all.push_back(line);
        bool zero = true;
        for (std::size_t i = 0; i < seen.size(); ++i) zero = zero && (seen[i] || m.data()[i] == 0);
        all.push_back(zero ? "rest 00, up to " + hex(m.memory_bytes(), 16) : "rest is not zero");
    }
    if (has(shown, "file")) {
        const auto packed = nibble::io::ggml::pack(m);
        all.push_back(packed ? "file " + bytes_text(packed.value().data(), packed.value().size()) : "no file");
    }
    return all;
}

lines expected_encode(const lines& header, const lines& shown) {
    lines all;
    for (const std::string& line : shown) {
        const lines words = words_of(line);
        if (words.empty()) continue;
        const float x = parse(words[0]);
        if (header.at(2) == "e8m0") {
            const unsigned code = nibble::e8m0::encode(x);
            all.push_back(words[0] + " " + hex(code, 8) + " " + number(nibble::e8m0::decode(code)));
            continue;
        }
        const nibble::code_format* f = nibble::find_format(header.at(2));
        if (f == nullptr) return {"no such format"};
        const unsigned code = f->encode(*f, x);
        all.push_back(words[0] + " " + hex(code, f->bits) + " " + number(f->value(code)));
    }
    return all;
}

lines expected_dynamic_map(const lines& shown) {
    lines all;
    for (const std::string& line : shown) {
        const unsigned long code = std::strtoul(line.c_str(), nullptr, 16);
        const float value = nibble::detail::signed_dynamic_map.values.at(code);
        all.push_back(hex(code, 8) + " " + hex(std::bit_cast<std::uint32_t>(value), 32) + " " + number(value));
    }
    return all;
}

const nibble::io::ggml::detail::block_type* find_block_type(const std::string& name) {
    for (const auto& t : nibble::io::ggml::detail::table::types)
        if (name == t.name && t.format != nullptr) return &t;
    return nullptr;
}

lines expected_block(const lines& header, const lines& shown) {
    namespace ggml = nibble::io::ggml;
    const auto* t = find_block_type(header.at(2));
    if (t == nullptr) return {"no such type"};
    nibble::qmatrix_builder builder(1, t->elements, *t->format, t->scheme, t->offset, nibble::per_group{t->group});
    const std::uint32_t codes = t->format == &nibble::ternary::format ? 3 : t->format->code_count();
    for (index k = 0; k < t->elements; ++k) builder.set_code(0, k, static_cast<unsigned>(k + k / 16 + k / 32) % codes);
    const bool two_level = t->scheme.storage == nibble::scale_storage::two_level;
    for (index g = 0; g < builder.layout().groups; ++g) {
        const auto i = static_cast<std::uint32_t>(g);
        const std::uint32_t last = (1u << t->scheme.bits) - 1;
        switch (t->scheme.storage) {
            case nibble::scale_storage::two_level:
                builder.set_scale(0, g, 5 * (i + 1) & last);
                builder.set_offset(0, g, 3 * (i + 2) & last);
                break;
            case nibble::scale_storage::e8m0: builder.set_scale(0, g, 0x7f + i); break;
            case nibble::scale_storage::e4m3: builder.set_scale(0, g, 0x38 + i); break;
            default:
                builder.set_scale(0, g, 0x3c00);
                builder.set_offset(0, g, 0x3800);
        }
    }
    if (two_level) builder.set_super(0, 0, 0x3c00);
    if (two_level && t->offset == nibble::offset_kind::minimum) builder.set_super(0, 0, 0x3800, true);
    const auto packed = ggml::pack(std::move(builder).finish(), t->id);
    if (!packed) return {packed.failure().message};
    std::vector<bool> seen;
    return dump(shown, "", packed.value().data(), packed.value().size(), seen);
}

// What the lines of an example should be.
lines expected(const block& b) {
    const lines header = words_of(b.header);
    const lines shown = tidy(b.body);
    const std::string kind = header.size() > 1 ? header[1] : "";
    if (kind == "dynamic_map") return expected_dynamic_map(shown);
    if (header.size() < 3) return {"an example of nothing"};
    if (kind == "codes" && header.size() > 3) return expected_codes(header, shown);
    if (kind == "line") return expected_line(header, shown);
    if (kind == "quantize") return expected_quantize(header, shown);
    if (kind == "encode") return expected_encode(header, shown);
    if (kind == "block") return expected_block(header, shown);
    return {"no such kind of example"};
}

std::vector<block> examples(const std::string& kind = "") {
    std::vector<block> all;
    for (const block& b : formats_md().blocks) {
        const lines header = words_of(b.header);
        if (!header.empty() && header[0] == "hex" && (kind.empty() || (header.size() > 1 && header[1] == kind))) all.push_back(b);
    }
    return all;
}

std::string subjects(const std::string& kind) {
    lines all;
    for (const block& b : examples(kind)) all.push_back(words_of(b.header).at(2));
    return join(all);
}

// --- rows of tables ----------------------------------------------------------------------------------------------------

const char* name_of(nibble::decode_class c) {
    return c == nibble::decode_class::integer ? "integer" : c == nibble::decode_class::table ? "table" : "wide";
}

std::string group_text(const nibble::granularity& g) {
    if (g.rows == 0) return "tensor";
    if (g.rows != 1) return decimal(g.rows) + " x " + decimal(g.cols);
    return g.cols == 0 ? "row" : decimal(g.cols);
}

std::string scheme_text(const nibble::scale_scheme& s) {
    if (s.storage != nibble::scale_storage::two_level) return nibble::name_of(s.storage);
    return "two_level(" + decimal(s.bits) + (s.is_signed ? ", true, " : ", false, ") + decimal(s.span) + ")";
}

// "2: 4 x 16" for 4-bit numbers from byte 2 on in runs of 16 bytes.
std::string plane_text(const nibble::io::ggml::detail::plane& p) {
    return p.bits == 0 ? "" : decimal(p.at) + ": " + decimal(p.bits) + " x " + decimal(p.width);
}
std::string place_text(int at) { return at < 0 ? "" : decimal(at); }

// Rows of cells.
using rows = std::vector<lines>;

rows format_rows() {
    rows all;
    for (const nibble::code_format* f : nibble::formats())
        all.push_back({f->name, decimal(f->bits), name_of(f->decode), number(f->min_value), number(f->max_value),
                       f->integral() ? number(f->unit) : "-", hex(f->zero_code, f->bits), f->use_when});
    return all;
}

rows recipe_rows() {
    rows all;
    for (const nibble::recipe& r : nibble::recipes()) {
        const nibble::qmatrix_builder builder(4096, 4096, *r.format, r.scale, r.offset(), r.group);
        all.push_back({r.name, r.format->name, scheme_text(r.scale), name_of(r.offset()), group_text(r.group), r.rule.name,
                       fixed(builder.peek().bits_per_weight()), r.use_when});
    }
    return all;
}

rows codebook_rows() {
    using namespace nibble;
    rows all;
    for (unsigned u = 0; u < 16; ++u) {
        all.push_back({hex(u, 4)});
        for (const code_format* f : {&nf4::format, &fp4::format, &af4::format, &iq4_nl::format, &fp4_e2m1::format})
            all.back().push_back(number(f->value(u)));
    }
    return all;
}

rows small_float_rows() {
    rows all;
    for (const nibble::code_format* f : nibble::formats()) {
        if (f->mantissa_bits == 0) continue;
        const unsigned sign = 1u << (f->bits - 1);
        const float normal = f->value(1u << f->mantissa_bits);
        lines inf, nan;
        std::string minus_zero = "none";
        unsigned last = 0;
        for (unsigned u = 0; u < f->code_count(); ++u) {
            const float v = f->value(u);
            if (std::isinf(v)) inf.push_back(hex(u, f->bits));
            if (std::isnan(v)) nan.push_back(hex(u, f->bits));
            if (v == 0.0f && std::signbit(v)) minus_zero = hex(u, f->bits);
            if (u < sign && std::isfinite(v)) last = u;
        }
        all.push_back({f->name, "1 " + decimal(f->bits - 1 - f->mantissa_bits) + " " + decimal(f->mantissa_bits),
                       decimal(1 - std::ilogb(normal)), number(f->value(last)), hex(last, f->bits),
                       "2^" + decimal(std::ilogb(normal)), "2^" + decimal(std::ilogb(f->value(1))),
                       inf.empty() ? "none" : join(inf), nan.empty() ? "none" : join(nan), minus_zero});
    }
    return all;
}

rows block_rows() {
    rows all;
    for (const auto& t : nibble::io::ggml::detail::table::types) {
        if (t.format == nullptr) continue;
        all.push_back({t.name, decimal(static_cast<long long>(t.id)), decimal(t.elements), decimal(t.bytes),
                       number(8.0f * static_cast<float>(t.bytes) / static_cast<float>(t.elements)), t.format->name,
                       decimal(t.group), plane_text(t.low), plane_text(t.high), plane_text(t.scale_low), plane_text(t.scale_high),
                       place_text(t.d_at), place_text(t.m_at)});
    }
    return all;
}

// The rows of every table that is checked, by the first word of its head.
std::map<std::string, rows> expected_tables() {
    return {{"code format", format_rows()}, {"recipe", recipe_rows()}, {"code", codebook_rows()},
            {"small float", small_float_rows()}, {"type", block_rows()}};
}

}  // namespace

TEST_CASE("every table is the library's list", "[docs]") {
    std::size_t checked = 0;
    for (const auto& [head, wanted] : expected_tables()) {
        const auto found = formats_md().tables.find(head);
        INFO("the table '" << head << "' of docs/formats.md");
        REQUIRE(found != formats_md().tables.end());
        const rows& shown = found->second;
        for (std::size_t i = 0; i < wanted.size(); ++i) {
            INFO("row " << i + 1);
            CHECK((i < shown.size() ? join(shown[i], " | ") : "missing") == join(wanted[i], " | "));
            ++checked;
        }
        CHECK(shown.size() == wanted.size());
    }
    CHECK(format_rows().size() == 21);
    CHECK(recipe_rows().size() == nibble::recipes().size());
    CHECK(checked == 21 + nibble::recipes().size() + 16 + 7 + block_rows().size());
}

TEST_CASE("every example is what the library computes", "[docs]") {
    std::size_t lines_checked = 0;
    for (const block& b : examples()) {
        const lines shown = tidy(b.body);
        const lines wanted = expected(b);
        INFO("```" << b.header << " should be\n" << join(wanted, "\n"));
        CHECK(shown == wanted);
        CHECK(shown.size() >= 1);
        lines_checked += shown.size();
    }
    CHECK(subjects("codes") == "int8 int4 int2 binary bf16 int3 int5 int6");
    CHECK(subjects("line") == "1 2 3 4 5 6 7 8");
    CHECK(examples("quantize").size() == 29);
    CHECK(examples("encode").size() == 7);
    CHECK(examples("dynamic_map").size() == 1);
    CHECK(examples("block").size() == 18);
    CHECK(examples().size() == 71);
    CHECK(lines_checked > 250);
}

TEST_CASE("the examples of quantization cover every scale scheme and every offset", "[docs]") {
    std::map<std::string, int> schemes, offsets;
    for (const block& b : examples("quantize")) {
        const lines header = words_of(b.header);
        const nibble::recipe* r = nibble::find_recipe(header.at(2));
        REQUIRE(r != nullptr);
        std::string scheme = nibble::name_of(r->scale.storage);
        for (std::size_t i = 3; i + 1 < header.size(); i += 2)
            if (header[i] == "scale") scheme = header[i + 1];
        ++schemes[scheme];
        ++offsets[nibble::name_of(r->offset())];
    }
    CHECK(schemes.size() == 9);
    CHECK(offsets.size() == 4);
}

TEST_CASE("a changed digit in an example is found", "[docs]") {
    std::size_t changed = 0;
    for (const block& b : examples()) {
        for (std::size_t i = 0; i < b.body.size(); ++i) {
            block copy = b;
            std::string& line = copy.body[i];
            if (line.rfind("weights", 0) == 0 || line.empty()) continue;  // what goes in, not what comes out
            line.back() = line.back() == '0' ? '1' : '0';
            INFO("```" << b.header << "\n" << line);
            CHECK(tidy(copy.body) != expected(copy));
            ++changed;
        }
    }
    CHECK(changed > 200);
}

TEST_CASE("the code of the document is the code of this test", "[docs]") {
    const std::string source = read_text(source_dir + "/tests/docs/formats_test.cpp");
    std::size_t found = 0;
    for (const block& b : formats_md().blocks) {
        if (b.header != "cpp") continue;
        INFO(join(b.body, "\n"));
        CHECK(source.find(join(b.body, "\n") + "\n") != std::string::npos);
        ++found;
    }
    CHECK(found == 2);
}
