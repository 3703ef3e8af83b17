// Matrices in nibble's own memory layout: what is written is what products read. Opening such a file maps it, and its
// matrices refer to the mapping: nothing is repacked or copied, and no weight is touched before it is multiplied with.
//
//   packed::write("model.nibble", matrices).or_throw();
//
//   const packed::file model = packed::open("model.nibble").value();
//   const qmatrix w = model.matrix("blk.0.ffn_up.weight").value();      // keeps the mapping alive, also without `model`
//
// The file is a safetensors file, which the official reader takes too:
//
//   metadata  "nibble.layout"        "1": the version of the layout at the top of qmatrix.hpp
//             "nibble.matrix.NAME"   JSON, what the bytes of tensor NAME mean:
//               {"code": "int4", "scale": "two_level", "scale_bits": 6, "scale_signed": false, "span": 8,
//                "offset": "minimum", "rows": 4096, "cols": 4096, "group": [1, 32], "recipe": "q4_k", "number": 0}
//               and for a codebook of the program's own "values": 16 floats as their 32 bits
//             all else               the user's
//   tensors   NAME                   U8 [bytes of the matrix, padded with zeros to a multiple of 64], at a multiple of 64
//             "nibble.numbers"       I32 [matrices, 2]: the bits of tensor_scale(), and exponent(), of matrix `number`
//             all else               as they are: norms, biases, whatever is not quantized
//
// Checked by open(): everything of safetensors.hpp; the version; that a description is complete, of a combination that
// exists, and that its layout takes exactly the bytes of its tensor; that tensor_scale and codebooks are finite. Whatever
// the bytes are, nothing outside of them is read. What they say is not looked at, that would be reading the file:
// check_scales() does, for files that may have been damaged.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <memory>

#include "../recipe.hpp"
#include "../rows.hpp"
#include "safetensors_writer.hpp"

namespace nibble::inline NIBBLE_ABI::io::packed {

inline constexpr int layout_version = 1;
inline constexpr std::string_view version_key = "nibble.layout";
inline constexpr std::string_view matrix_key = "nibble.matrix.";
inline constexpr std::string_view numbers_name = "nibble.numbers";

/// A matrix and what it is called.
struct named_matrix {
    std::string name;
    qmatrix matrix;
};

/// All scales and offsets are finite, and none is above what exponent() says: what a reader that repacks checks on the way,
/// for a matrix that was mapped. Reads the scales, not the codes.
[[nodiscard]] inline status check_scales(const qmatrix& m) {
    const nibble::detail::fp_environment environment;
    std::array<float, 16> s, o;
    for (index p = 0; p < m.layout().panels; ++p) {
        for (index g = 0; g < m.groups(); ++g) {
            m.expand_scales(p, g, 1, s.data(), o.data());
            for (index r = 0; r < panel_rows && p * panel_rows + r < m.rows(); ++r) {
                const bool scale = nibble::detail::finite_in_memory(&s[static_cast<std::size_t>(r)]);
                if (scale && nibble::detail::finite_in_memory(&o[static_cast<std::size_t>(r)])) continue;
                return {errc::non_finite, std::string(scale ? "the offset" : "the scale") + " of row " + std::to_string(p * panel_rows + r) +
                                              ", group " + std::to_string(g) + " is NaN or Inf"};
            }
        }
    }
    if (const int e = qmatrix_builder::measure_exponent(m); e > m.exponent())
        return {errc::malformed, "an exponent of " + std::to_string(m.exponent()) + ", its scales have " + std::to_string(e)};
    return {};
}

namespace detail {

constexpr index pad_to = 64;
constexpr std::size_t most_text = 4096;  // of one description: bounds what reading it takes

[[nodiscard]] constexpr std::uint64_t padded(index bytes) noexcept {
    return static_cast<std::uint64_t>(nibble::detail::ceil_div(bytes, pad_to) * pad_to);
}

/// What a matrix is, without its weights.
struct description {
    format_handle format;
    scale_scheme scheme;
    offset_kind offset = offset_kind::none;
    index rows = 0, cols = 0;
    granularity group;
    std::string recipe;

    [[nodiscard]] static description of(const qmatrix& m) {
        return {m.handle(), m.scheme(), m.offset_type(), m.rows(), m.cols(), m.grouping(), m.name()};
    }
    [[nodiscard]] nibble::detail::layout layout() const {
        return nibble::detail::make_layout(rows, cols, format->bits, scheme, offset, group);
    }
    [[nodiscard]] std::string text() const {
        return recipe + " " + nibble::detail::shape_text(rows, cols) + " (" + format->name + " codes, " + name_of(scheme.storage) +
               " scales, groups of " + nibble::detail::shape_text(group.rows, group.cols) + ")";
    }
};

[[nodiscard]] NIBBLE_IO_API result<std::string> to_json(const description& d, std::size_t number);

#if NIBBLE_DEFINE_IO

/// Whether the program's own format is a codebook that make_codebook() makes again.
[[nodiscard]] inline bool is_plain_codebook(const code_format& f) noexcept {
    return f.bits == 4 && f.decode == decode_class::table && f.encode == &nibble::detail::encode_codebook && f.unit == 0.0f &&
           f.decode_wide == nullptr;
}

NIBBLE_IO_API result<std::string> to_json(const description& d, std::size_t number) {
    const code_format& f = *d.format;
    nlohmann::ordered_json json = {{"code", f.name},           {"scale", name_of(d.scheme.storage)}, {"scale_bits", d.scheme.bits},
                                   {"scale_signed", d.scheme.is_signed}, {"span", d.scheme.span},    {"offset", name_of(d.offset)},
                                   {"rows", d.rows},           {"cols", d.cols},                     {"group", {d.group.rows, d.group.cols}},
                                   {"recipe", d.recipe},       {"number", number}};
    if (find_format(f.name) != &f) {
        if (!is_plain_codebook(f))
            return failure{errc::unsupported, "packed: code format " + io::detail::quoted(f.name) + " is neither the library's nor a codebook of 16 values", 0};
        for (std::size_t i = 0; i < 16; ++i) json["values"].push_back(nibble::detail::bits_of(f.values[i]));
    }
    if (!safetensors::detail::json_text(f.name) || !safetensors::detail::json_text(d.recipe))
        return failure{errc::invalid_argument, "packed: " + io::detail::quoted(d.recipe) + " or its code format's name is not UTF-8", 0};
    std::string text = json.dump();
    if (text.size() > most_text)
        return failure{errc::invalid_argument, "packed: the names of " + io::detail::quoted(d.recipe) + " and its code format are too long", 0};
    return text;
}

/// Codebooks that were read: equal ones become one format.
using codebooks = std::map<std::string, format_handle, std::less<>>;

/// Reads a description. `why` is what is wrong with it.
class description_reader {
public:
    description_reader(const std::string& text, codebooks& books) : books_(books) {
        if (text.size() <= most_text) json_ = nlohmann::json::parse(text, nullptr, false);
        if (json_.is_object()) read();
        else fail(text.size() <= most_text ? "no JSON object" : "more than 4096 bytes");
    }
    description what;
    std::uint64_t number = 0;
    std::string why;

private:
    void fail(std::string text) { why = why.empty() ? std::move(text) : why; }
    [[nodiscard]] const nlohmann::json& field(const char* name) {
        static const nlohmann::json null;
        ++fields_;
        const auto at = json_.find(name);
        if (at == json_.end()) fail(std::string("no \"") + name + "\"");
        return at == json_.end() ? null : *at;
    }
    // No number of the format needs more than 2^60, and no sum of two of them overflows.
    [[nodiscard]] std::uint64_t count(const nlohmann::json& j, const char* name, std::uint64_t most = std::uint64_t{1} << 60) {
        const auto* u = j.get_ptr<const nlohmann::json::number_unsigned_t*>();
        if (u != nullptr && *u <= most) return *u;
        fail("\"" + std::string(name) + "\" is no integer from 0 to " + std::to_string(most));
        return 0;
    }
    [[nodiscard]] std::string word(const char* name) {
        const auto* s = field(name).get_ptr<const std::string*>();
        if (s == nullptr) fail("\"" + std::string(name) + "\" is no string");
        return s == nullptr ? std::string() : *s;
    }
    template <class Kind>
    [[nodiscard]] Kind kind(const char* name, Kind last) {
        const std::string text = word(name);
        for (int i = 0; i <= static_cast<int>(last); ++i)
            if (text == name_of(static_cast<Kind>(i))) return static_cast<Kind>(i);
        fail("\"" + std::string(name) + "\" is " + io::detail::quoted(text) + ", which is not known");
        return Kind{};
    }

    void read() {
        const auto code = word("code");
        what.scheme.storage = kind("scale", scale_storage::double_quantized);
        what.scheme.bits = static_cast<int>(count(field("scale_bits"), "scale_bits", 32));
        const auto* is_signed = field("scale_signed").get_ptr<const bool*>();
        if (is_signed == nullptr) fail("\"scale_signed\" is no boolean");
        what.scheme.is_signed = is_signed != nullptr && *is_signed;
        what.scheme.span = static_cast<index>(count(field("span"), "span", std::uint64_t{1} << 31));
        what.offset = kind("offset", offset_kind::minimum);
        what.rows = static_cast<index>(count(field("rows"), "rows"));
        what.cols = static_cast<index>(count(field("cols"), "cols"));
        const auto& group = field("group");
        if (!group.is_array() || group.size() != 2) return fail("\"group\" is no array of two");
        what.group = {static_cast<index>(count(group[0], "group")), static_cast<index>(count(group[1], "group"))};
        what.recipe = word("recipe");
        number = count(field("number"), "number");
        const bool own = json_.contains("values");
        if (json_.size() != fields_ + (own ? 1 : 0)) fail("it has fields that are not known");
        if (!why.empty()) return;
        if (own) read_codebook(code);
        else if (const code_format* f = find_format(code); f != nullptr) what.format = format_handle(*f);
        else fail("code format " + io::detail::quoted(code) + " is not known");
        if (why.empty()) check();
    }
    void read_codebook(const std::string& name) {
        const auto& list = json_["values"];
        if (!list.is_array() || list.size() != 16) return fail("\"values\" is no array of 16");
        std::array<float, 16> values{};
        std::uint32_t largest = 0;
        for (std::size_t i = 0; i < 16; ++i) {
            const auto u = static_cast<std::uint32_t>(count(list[i], "values", 0xffffffffu));
            if (!nibble::detail::is_finite_bits(u)) return fail("value " + std::to_string(i) + " of the codebook is NaN or Inf");
            largest |= u & 0x7fffffffu;
            std::memcpy(&values[i], &u, 4);
        }
        if (!why.empty()) return;
        if (largest == 0) return fail("all values of the codebook are zero");
        const auto [at, fresh] = books_.try_emplace(list.dump() + name);
        if (fresh) at->second = make_codebook(name, values);
        what.format = at->second;
    }
    void check() {
        const scale_scheme& s = what.scheme;
        constexpr std::array<scale_scheme, 9> schemes = {scales::none, scales::f32,      scales::f16, scales::bf16,
                                                         scales::e8m0, scales::e4m3,     scales::e4m3_f32, {},
                                                         scales::double_quantized};
        const scale_scheme& known = schemes[static_cast<std::size_t>(s.storage)];
        if (s.storage != scale_storage::two_level && !(s == known))
            return fail(std::string("a scheme ") + name_of(s.storage) + " of " + std::to_string(s.bits) + " bits with a span of " + std::to_string(s.span));
        if (what.group.rows < 1 || what.group.cols < 1 || what.group.rows > std::max<index>(1, what.rows) ||
            what.group.cols > std::max<index>(1, what.cols))
            return fail("groups of " + nibble::detail::shape_text(what.group.rows, what.group.cols));
        if (status ok = qmatrix_builder::check_combination(what.rows, what.cols, *what.format, s, what.offset, what.group); !ok)
            return fail(ok.message());
        if (what.rows + 16 > PTRDIFF_MAX / 64 / (what.cols + 4)) fail("the shape does not fit in memory");
    }

    nlohmann::json json_;
    codebooks& books_;
    std::size_t fields_ = 0;
};

#endif  // NIBBLE_DEFINE_IO

}  // namespace detail

class file;
/// The matrices of a safetensors file, which they keep alive. Whoever parsed it from memory keeps that memory.
[[nodiscard]] NIBBLE_IO_API result<file> read(std::shared_ptr<const safetensors::file> storage);
/// Opens a file. With open_mode::map no byte of a matrix is read.
[[nodiscard]] NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how = open_mode::map,
                                              const safetensors::read_limits& limits = {});

/// A file that passed every check. Copies share the mapping.
class file {
public:
    /// In the order of the file.
    [[nodiscard]] const std::vector<named_matrix>& matrices() const& noexcept { return matrices_; }
    const std::vector<named_matrix>& matrices() const&& = delete;
    /// The tensors that are not matrices; they live as long as the file or a matrix of it.
    [[nodiscard]] const std::vector<safetensors::tensor>& tensors() const& noexcept { return tensors_; }
    const std::vector<safetensors::tensor>& tensors() const&& = delete;
    /// The user's metadata.
    [[nodiscard]] const safetensors::metadata_map& metadata() const& noexcept { return metadata_; }
    const safetensors::metadata_map& metadata() const&& = delete;
    [[nodiscard]] bool mapped() const noexcept { return storage_->mapped(); }

    [[nodiscard]] result<qmatrix> matrix(std::string_view name) const {
        if (const named_matrix* m = nibble::detail::find_named(matrices_, by_name_, name, name_of_matrix)) return m->matrix;
        return failure{errc::not_found, "packed: no matrix " + io::detail::quoted(name) + nibble::detail::nearest_names(name, matrices_, name_of_matrix), 0};
    }

private:
    friend result<file> read(std::shared_ptr<const safetensors::file> storage);
    file() = default;

    [[nodiscard]] static std::string_view name_of_matrix(const named_matrix& m) noexcept { return m.name; }

    std::shared_ptr<const safetensors::file> storage_;
    std::vector<named_matrix> matrices_;
    std::vector<std::uint32_t> by_name_;
    std::vector<safetensors::tensor> tensors_;
    safetensors::metadata_map metadata_;
};

#if NIBBLE_DEFINE_IO

NIBBLE_IO_API result<file> read(std::shared_ptr<const safetensors::file> storage) {
    const auto wrong = [](errc code, const std::string& text, std::uint64_t offset = 8) {
        return failure{code, "packed: " + text, offset};
    };
    file out;
    out.storage_ = storage;
    const auto version = storage->metadata().find(version_key);
    if (version == storage->metadata().end())
        return wrong(errc::unsupported, "a safetensors file without packed matrices (no \"nibble.layout\" in its metadata)");
    if (version->second != std::to_string(layout_version))
        return wrong(errc::unsupported, "layout version " + io::detail::quoted(version->second, 20) + ", this library reads version " +
                                            std::to_string(layout_version) + ": convert the original again");
    const safetensors::tensor* numbers = storage->find(numbers_name);
    if (numbers == nullptr) return wrong(errc::malformed, "no tensor \"nibble.numbers\"");
    if (numbers->type != safetensors::dtype::i32 || numbers->shape.size() != 2 || numbers->shape[1] != 2)
        return wrong(errc::malformed, "\"nibble.numbers\" is " + numbers->describe() + ", expected I32 [matrices, 2]", numbers->offset);

    detail::codebooks books;
    std::size_t described = 0;
    for (const auto& [key, text] : storage->metadata())
        if (key.starts_with(matrix_key)) ++described;
        else if (key != version_key) out.metadata_.emplace(key, text);
    for (const safetensors::tensor& t : storage->tensors()) {
        if (&t == numbers) continue;
        const auto entry = storage->metadata().find(std::string(matrix_key) + t.name);
        if (entry == storage->metadata().end()) {
            out.tensors_.push_back(t);
            continue;
        }
        --described;
        const std::string which = "matrix " + io::detail::quoted(t.name) + ": ";
        detail::description_reader d(entry->second, books);
        if (!d.why.empty()) return wrong(errc::malformed, which + d.why, t.offset);
        const nibble::detail::layout layout = d.what.layout();
        if (t.type != safetensors::dtype::u8 || t.shape.size() != 1 || t.bytes.size() != detail::padded(layout.size))
            return wrong(errc::malformed, which + d.what.text() + " takes U8 [" + std::to_string(detail::padded(layout.size)) +
                                              "], the tensor is " + t.describe(), t.offset);
        if (d.number >= numbers->shape[0])
            return wrong(errc::malformed, which + "number " + std::to_string(d.number) + " of " + std::to_string(numbers->shape[0]), t.offset);
        float tensor_scale;
        std::int32_t exponent;
        std::memcpy(&tensor_scale, numbers->bytes.data() + 8 * d.number, 4);
        std::memcpy(&exponent, numbers->bytes.data() + 8 * d.number + 4, 4);
        if (!nibble::detail::finite_in_memory(&tensor_scale))
            return wrong(errc::malformed, which + "the scale of the tensor is NaN or Inf", numbers->offset + 8 * d.number);
        if (exponent < -127 || exponent > 128)
            return wrong(errc::malformed, which + "an exponent of " + std::to_string(exponent), numbers->offset + 8 * d.number + 4);
        std::shared_ptr<const std::uint8_t> bytes(storage, reinterpret_cast<const std::uint8_t*>(t.bytes.data()));
        out.matrices_.push_back({t.name, qmatrix_builder::adopt(std::move(bytes), d.what.rows, d.what.cols, d.what.format, d.what.scheme,
                                                                d.what.offset, d.what.group, d.what.recipe, tensor_scale, exponent)});
    }
    if (described != 0) return wrong(errc::malformed, std::to_string(described) + " descriptions of matrices without a tensor");
    out.by_name_ = nibble::detail::sorted_by_name(out.matrices_, file::name_of_matrix);
    return out;
}

NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how, const safetensors::read_limits& limits) {
    auto opened = safetensors::open(path, how, limits);
    if (!opened) return opened.failure();
    auto out = read(std::make_shared<const safetensors::file>(std::move(opened).value()));
    if (out) return out;
    return io::detail::in_file(path, out.failure());
}

#endif  // NIBBLE_DEFINE_IO

/// Writes one file, matrix by matrix, so that only one of them need be in memory:
///
///   add_matrix(), add_tensor(); create(); write() for all matrices in order, then for all tensors; finish()
class writer {
public:
    // --- before create() ---

    /// The user's metadata. Keys that begin with "nibble." are taken.
    [[nodiscard]] status set(const std::string& key, const std::string& text) {
        if (key.starts_with("nibble.")) return bad(errc::invalid_argument, "the metadata key " + io::detail::quoted(key) + " is taken");
        return out_.set(key, text);
    }
    /// A matrix like this one will come.
    [[nodiscard]] status add_matrix(const std::string& name, const qmatrix& m) { return add(name, detail::description::of(m)); }
    /// One of another shape, but like it in all else.
    [[nodiscard]] status add_matrix(const std::string& name, index rows, index cols, const qmatrix& like) {
        detail::description d = detail::description::of(like);
        d.rows = rows;
        d.cols = cols;
        return add(name, std::move(d));
    }
    /// The matrix that quantize(W, r) makes of rows x cols weights will come.
    [[nodiscard]] status add_matrix(const std::string& name, index rows, index cols, const recipe& r) {
        if (status s = qmatrix_builder::check_combination(rows, cols, *r.format, r.scale, r.offset(), r.group); !s) return s;
        const nibble::detail::layout l = nibble::detail::make_layout(rows, cols, r.format->bits, r.scale, r.offset(), r.group);
        return add(name, {format_handle(*r.format), r.scale, r.offset(), rows, cols, {l.block_rows, l.group}, r.name});
    }
    /// A tensor that stays as it is. Add those of wide elements first: then all are aligned for their type.
    [[nodiscard]] status add_tensor(const std::string& name, safetensors::dtype type, const std::vector<std::uint64_t>& shape) {
        if (created_) return bad(errc::invalid_argument, "tensor " + io::detail::quoted(name) + " comes after create()");
        if (name == numbers_name) return bad(errc::invalid_argument, "the name " + io::detail::quoted(name) + " is taken");
        tensors_.push_back({name, type, shape, {}, 0});
        return {};
    }

    /// Begins the file. `path` itself is untouched until finish().
    [[nodiscard]] status create(const std::filesystem::path& path) {
        if (created_) return bad(errc::invalid_argument, "create() is called twice");
        out_.align_buffer(static_cast<std::uint64_t>(detail::pad_to));
        if (status s = out_.set(std::string(version_key), std::to_string(layout_version)); !s) return s;
        if (status s = out_.add_tensor(std::string(numbers_name), safetensors::dtype::i32, {matrices_.size(), 2}); !s) return s;
        for (const safetensors::tensor& t : tensors_)
            if (status s = out_.add_tensor(t.name, t.type, t.shape); !s) return s;
        created_ = true;
        return out_.create(path);
    }

    // --- after create() ---

    /// The next matrix. A row block is written as a matrix of its own.
    [[nodiscard]] status write(const qmatrix& m) {
        if (!created_ || numbers_.size() == matrices_.size()) return bad(errc::invalid_argument, "there is no matrix to write");
        const detail::description& d = matrices_[numbers_.size()];
        if (&*d.format != &m.format() || !(d.scheme == m.scheme()) || d.offset != m.offset_type() || d.rows != m.rows() ||
            d.cols != m.cols() || !(d.group == m.grouping()) || d.recipe != m.name())
            return bad(errc::shape_mismatch, d.text() + " was announced, this is " + detail::description::of(m).text());
        if (!(m.layout() == d.layout())) {
            const qmatrix block[] = {m};
            if (status s = check_concatenate(block); !s) return s;
            qmatrix whole = concatenate(block);
            if (!(whole.layout() == d.layout())) return bad(errc::unsupported, "this block of " + d.text() + " begins inside a tile of rows");
            return write_whole(whole);
        }
        return write_whole(m);
    }
    /// The next bytes of the current tensor.
    [[nodiscard]] status write(std::span<const std::byte> bytes) {
        if (!created_ || numbers_.size() < matrices_.size()) return bad(errc::invalid_argument, "all matrices come first");
        return out_.write(bytes);
    }
    /// Puts the file in its place. Refused while something is missing.
    [[nodiscard]] status finish() { return out_.finish(); }

private:
    [[nodiscard]] static status bad(errc code, std::string text) { return {code, "packed: " + std::move(text)}; }

    [[nodiscard]] status add(const std::string& name, detail::description d) {
        if (name == numbers_name) return bad(errc::invalid_argument, "the name " + io::detail::quoted(name) + " is taken");
        const auto text = detail::to_json(d, matrices_.size());
        if (!text) return {text.failure().code, text.failure().message};
        if (status s = out_.add_tensor(name, safetensors::dtype::u8, {detail::padded(d.layout().size)}); !s) return s;
        matrices_.push_back(std::move(d));
        return out_.set(std::string(matrix_key) + name, text.value());
    }
    [[nodiscard]] status write_whole(const qmatrix& m) {
        constexpr std::array<std::byte, detail::pad_to> zeros{};
        const std::span<const std::uint8_t> all(m.data(), m.memory_bytes());
        if (status s = out_.write(std::as_bytes(all)); !s) return s;
        if (status s = out_.write(std::span(zeros).first(detail::padded(m.layout().size) - all.size())); !s) return s;
        const float scale = m.tensor_scale();
        std::array<std::int32_t, 2> both = {0, m.exponent()};
        std::memcpy(both.data(), &scale, 4);
        numbers_.push_back(both);
        return numbers_.size() == matrices_.size() ? write_numbers() : status();
    }
    [[nodiscard]] status write_numbers() {
        return out_.write(std::as_bytes(std::span<const std::array<std::int32_t, 2>>(numbers_)));
    }

    safetensors::writer out_;
    std::vector<detail::description> matrices_;
    std::vector<safetensors::tensor> tensors_;
    std::vector<std::array<std::int32_t, 2>> numbers_;
    bool created_ = false;
};

/// Writes a file of these matrices and tensors, whole or not at all.
[[nodiscard]] inline status write(const std::filesystem::path& path, std::span<const named_matrix> matrices,
                                  std::span<const safetensors::tensor> tensors = {}, const safetensors::metadata_map& metadata = {}) {
    writer out;
    for (const auto& [key, text] : metadata)
        if (status s = out.set(key, text); !s) return s;
    for (const named_matrix& m : matrices)
        if (status s = out.add_matrix(m.name, m.matrix); !s) return s;
    std::vector<const safetensors::tensor*> order;
    for (const safetensors::tensor& t : tensors) order.push_back(&t);
    std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return bits_of(a->type) > bits_of(b->type); });
    for (const auto* t : order)
        if (status s = out.add_tensor(t->name, t->type, t->shape); !s) return s;
    if (status s = out.create(path); !s) return s;
    for (const named_matrix& m : matrices)
        if (status s = out.write(m.matrix); !s) return s;
    for (const auto* t : order)
        if (status s = out.write(t->bytes); !s) return s;
    return out.finish();
}

}  // namespace nibble::io::packed
