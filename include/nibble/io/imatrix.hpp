// Importance matrices: how much each input of a weight matters, measured on sample text by llama.cpp's `imatrix`. Both
// forms of its files are read and written.
//
//   const auto im = imatrix::open("model.imatrix").value();
//   if (const imatrix::entry* e = im.find("blk.0.ffn_up.weight")) {
//       const std::vector<float> w = imatrix::weights(*e, W.cols()).value();
//       quantize(W, "q4_k", {.importance = w});
//   }
//
// An entry has, for every column k of the weight, sum[k] = sum over tokens of x[k]^2, and the count of tokens. The
// importance of a column is sum / count. A weight of several matrices (experts) has one row of sums and one count each;
// a matrix that no token reached (count 0) has importance 1 everywhere, as in llama.cpp.
//
//   GGUF     tensors NAME.in_sum2 F32 [matrices, K] and NAME.counts F32 [matrices, 1]; metadata general.type = "imatrix",
//            imatrix.datasets (texts), imatrix.chunk_count and imatrix.chunk_size (u32)
//   legacy   i32 entries; each: i32 length, name, i32 calls, i32 n, f32[n] = sum / count * calls; then, or nothing: i32
//            chunks, i32 length, dataset. It does not say how many matrices n / K there are: one count for all of them
//
// Refused: names twice, empty or longer than 65,535 bytes; sums and counts that are negative, NaN or Inf (both occur in
// the wild, and quantize to garbage); sums without counts and the reverse; shapes that differ; lengths beyond the file.
//
// Format: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix
#pragma once

#include <algorithm>
#include <filesystem>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.hpp"
#include "gguf_writer.hpp"
#include "output_file.hpp"

namespace nibble::inline NIBBLE_ABI::io::imatrix {

/// The importance of the columns of one weight.
struct entry {
    std::string name;
    std::vector<float> sums;    ///< matrices x K, row-major
    std::vector<float> counts;  ///< of each matrix; in a legacy file one for all
};

/// What a file holds.
struct file {
    std::vector<entry> entries;  ///< sorted by name
    std::vector<std::string> datasets;
    std::uint32_t chunks = 0;      ///< of text that were seen
    std::uint32_t chunk_size = 0;  ///< tokens of a chunk; 0: the file does not say

    /// The entry of that name, or null.
    [[nodiscard]] const entry* find(std::string_view name) const& noexcept {
        const auto at = std::lower_bound(entries.begin(), entries.end(), name,
                                         [](const entry& e, std::string_view wanted) { return std::string_view(e.name) < wanted; });
        return at != entries.end() && at->name == name ? &*at : nullptr;
    }
    const entry* find(std::string_view name) const&& = delete;
};

/// Reads a file in memory, of either form.
[[nodiscard]] NIBBLE_IO_API result<file> read(std::span<const std::byte> bytes);
/// Reads a file of either form.
[[nodiscard]] NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how = open_mode::map);
/// The importance of the `cols` columns of matrix `which` (an expert) of a weight: finite, >= 0.
[[nodiscard]] NIBBLE_IO_API result<std::vector<float>> weights(const entry& e, index cols, index which = 0);
/// Writes the GGUF form, whole or not at all.
[[nodiscard]] NIBBLE_IO_API status write(const std::filesystem::path& path, const file& f);
/// Writes the legacy form, whole or not at all: the first dataset only, and where there are several counts, or one that is
/// no integer, sum / count * chunks, rounded twice, in place of the sums.
[[nodiscard]] NIBBLE_IO_API status write_legacy(const std::filesystem::path& path, const file& f);

#if NIBBLE_DEFINE_IO

namespace detail {

NIBBLE_FP_BEGIN

NIBBLE_NOINLINE inline void divide(const float* sums, float count, std::size_t n, float* out) noexcept {
    for (std::size_t k = 0; k < n; ++k) out[k] = count > 0.0f ? sums[k] / count : 1.0f;
}
NIBBLE_NOINLINE inline void multiply(float* x, float by, std::size_t n) noexcept {
    for (std::size_t k = 0; k < n; ++k) x[k] *= by;
}

NIBBLE_FP_END

[[nodiscard]] inline nibble::failure bad(std::string text, std::uint64_t at = 0) {
    return {errc::malformed, "imatrix: " + std::move(text), at};
}
[[nodiscard]] inline std::string which(std::string_view name) { return "entry " + io::detail::quoted(name) + ": "; }

/// A float from 0 up, by its bits.
[[nodiscard]] inline bool is_weight(float x) noexcept {
    std::uint32_t u;
    std::memcpy(&u, &x, 4);
    return u < 0x7f800000u || u == 0x80000000u;
}

/// What is wrong with an entry by itself.
[[nodiscard]] inline std::string defect(const entry& e) {
    if (e.name.empty() || e.name.size() > 65'535) return "a name of " + std::to_string(e.name.size()) + " bytes";
    if (e.counts.empty() || e.sums.empty() || e.sums.size() % e.counts.size() != 0)
        return which(e.name) + std::to_string(e.sums.size()) + " sums of " + std::to_string(e.counts.size()) + " matrices";
    for (std::size_t i = 0; i < e.sums.size(); ++i)
        if (!is_weight(e.sums[i])) return which(e.name) + "sum " + std::to_string(i) + " is negative, NaN or Inf";
    for (std::size_t i = 0; i < e.counts.size(); ++i)
        if (!is_weight(e.counts[i])) return which(e.name) + "count " + std::to_string(i) + " is negative, NaN or Inf";
    return {};
}

[[nodiscard]] inline std::string sort(std::vector<entry>& entries) {
    std::sort(entries.begin(), entries.end(), [](const entry& a, const entry& b) { return a.name < b.name; });
    const auto twice = std::adjacent_find(entries.begin(), entries.end(), [](const entry& a, const entry& b) { return a.name == b.name; });
    return twice == entries.end() ? std::string() : which(twice->name) + "it is there twice";
}

[[nodiscard]] inline result<file> read_gguf(std::span<const std::byte> bytes) {
    const auto g = gguf::read(bytes);
    if (!g) return g.failure();
    file out;
    const gguf::value* type = g.value().find_metadata("general.type");
    if (type == nullptr || type->as_text() != std::string_view("imatrix"))
        return failure{errc::unsupported, "imatrix: a GGUF file whose general.type is not \"imatrix\"", 0};
    const auto number = [&](const char* key) -> std::uint32_t {
        const gguf::value* v = g.value().find_metadata(key);
        const auto u = v != nullptr ? v->as_unsigned() : std::nullopt;
        return u && *u <= 0xffffffffu ? static_cast<std::uint32_t>(*u) : 0;
    };
    out.chunks = number("imatrix.chunk_count");
    out.chunk_size = number("imatrix.chunk_size");
    if (const gguf::value* names = g.value().find_metadata("imatrix.datasets"))
        for (const gguf::value name : names->elements())
            if (const auto text = name.as_text()) out.datasets.emplace_back(*text);

    constexpr std::string_view sums = ".in_sum2", counts = ".counts";
    for (const gguf::tensor& t : g.value().tensors()) {
        if (t.name.ends_with(counts)) {
            const std::string base(t.name.substr(0, t.name.size() - counts.size()));
            if (g.value().find(base + std::string(sums)) == nullptr) return bad(which(base) + "counts without sums", t.offset);
            continue;
        }
        if (!t.name.ends_with(sums)) continue;  // newer files have more statistics
        entry e;
        e.name = t.name.substr(0, t.name.size() - sums.size());
        const gguf::tensor* c = g.value().find(e.name + std::string(counts));
        if (c == nullptr) return bad(which(e.name) + "sums without counts", t.offset);
        if (t.type != ggml::type::f32 || c->type != ggml::type::f32 || c->elements() != t.rows())
            return bad(which(e.name) + "sums " + t.describe() + " and counts " + c->describe() + ", expected F32 [matrices, K] and F32 [matrices, 1]",
                       t.offset);
        e.sums = t.values().value();
        e.counts = c->values().value();
        if (const std::string d = defect(e); !d.empty()) return bad(d, t.offset);
        out.entries.push_back(std::move(e));
    }
    if (const std::string d = sort(out.entries); !d.empty()) return bad(d);
    return out;
}

class legacy_reader {
public:
    explicit legacy_reader(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

    [[nodiscard]] result<file> read() {
        file out;
        const auto entries = count("the number of entries", 1, 16);  // an entry takes 16 bytes and its name
        for (std::uint64_t i = 0; i < entries && why_.empty(); ++i) {
            const std::string number = "entry " + std::to_string(i);
            entry e;
            e.name = text(number);
            const auto calls = count((number + ", calls").c_str(), 0, 0);
            e.counts = {static_cast<float>(calls)};
            const std::size_t at = at_;
            e.sums.resize(count((number + ", values").c_str(), 1, 4));
            if (!why_.empty()) break;
            std::memcpy(e.sums.data(), bytes_.data() + at_, 4 * e.sums.size());
            at_ += 4 * e.sums.size();
            if (const std::string d = defect(e); !d.empty()) return bad(d, at);
            out.entries.push_back(std::move(e));
        }
        if (why_.empty() && at_ != bytes_.size()) {
            out.chunks = static_cast<std::uint32_t>(count("the number of chunks", 0, 0));
            if (at_ != bytes_.size()) out.datasets.push_back(text("the dataset"));
        }
        if (why_.empty() && at_ != bytes_.size()) why_ = std::to_string(bytes_.size() - at_) + " bytes after the end";
        if (!why_.empty()) return bad(why_ + " (neither a GGUF nor a legacy imatrix file?)", at_);
        if (const std::string d = sort(out.entries); !d.empty()) return bad(d);
        return out;
    }

private:
    // An i32 that counts things of `each` bytes that follow.
    [[nodiscard]] std::uint64_t count(const char* what, std::int32_t least, std::uint64_t each) {
        if (!why_.empty()) return 0;
        if (bytes_.size() - at_ < 4) {
            why_ = std::string(what) + ": the file ends";
            return 0;
        }
        const auto n = static_cast<std::int32_t>(gguf::detail::load<std::uint32_t>(bytes_.data() + at_));
        if (n < least || (each != 0 && static_cast<std::uint64_t>(n) > (bytes_.size() - at_ - 4) / each)) {
            why_ = std::string(what) + ": " + std::to_string(n) + ", the file has " + std::to_string(bytes_.size() - at_ - 4) + " more bytes";
            return 0;
        }
        at_ += 4;
        return static_cast<std::uint64_t>(n);
    }
    [[nodiscard]] std::string text(const std::string& what) {
        const auto length = count((what + ", length").c_str(), 0, 1);
        if (!why_.empty()) return {};
        std::string out(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
        at_ += length;
        return out;
    }

    std::span<const std::byte> bytes_;
    std::size_t at_ = 0;
    std::string why_;
};

[[nodiscard]] inline status check_to_write(const file& f) {
    std::vector<std::string_view> names;
    for (const entry& e : f.entries) {
        if (const std::string d = defect(e); !d.empty()) return {errc::invalid_argument, "imatrix: " + d};
        names.push_back(e.name);
    }
    std::sort(names.begin(), names.end());
    if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
        return {errc::invalid_argument, "imatrix: " + which(*twice) + "it is there twice"};
    return {};
}

inline void put(std::string& out, std::uint64_t n) {
    for (int i = 0; i < 32; i += 8) out += static_cast<char>(n >> i & 255);
}

}  // namespace detail

NIBBLE_IO_API result<file> read(std::span<const std::byte> bytes) {
    if (bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0) return detail::read_gguf(bytes);
    return detail::legacy_reader(bytes).read();
}

NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how) {
    const auto bytes = file_bytes::open(path, how);
    if (!bytes) return bytes.failure();
    auto out = read(bytes.value().bytes());
    if (out) return out;
    return io::detail::in_file(path, out.failure());
}

NIBBLE_IO_API result<std::vector<float>> weights(const entry& e, index cols, index which) {
    if (cols <= 0 || which < 0 || static_cast<std::uint64_t>(cols) > e.sums.size() || static_cast<std::uint64_t>(which) >= e.sums.size() / static_cast<std::uint64_t>(cols) ||
        e.sums.size() % static_cast<std::uint64_t>(cols) != 0 || (e.counts.size() != 1 && e.sums.size() / e.counts.size() != static_cast<std::uint64_t>(cols)))
        return failure{errc::shape_mismatch, "imatrix: " + detail::which(e.name) + std::to_string(e.sums.size()) + " values of " + std::to_string(e.counts.size()) +
                                                 " matrices, asked for matrix " + std::to_string(which) + " of " + std::to_string(cols) + " columns", 0};
    std::vector<float> out(static_cast<std::size_t>(cols));
    const nibble::detail::fp_environment environment;
    detail::divide(e.sums.data() + which * cols, e.counts[e.counts.size() == 1 ? 0 : static_cast<std::size_t>(which)], out.size(), out.data());
    for (const float w : out)
        if (!detail::is_weight(w)) return failure{errc::out_of_range, "imatrix: " + detail::which(e.name) + "a sum divided by its count is Inf", 0};
    return out;
}

NIBBLE_IO_API status write(const std::filesystem::path& path, const file& f) {
    if (status s = detail::check_to_write(f); !s) return s;
    gguf::writer out;
    if (status s = out.set("general.type", std::string_view("imatrix")); !s) return s;
    if (status s = out.set("imatrix.datasets", f.datasets); !s) return s;
    if (status s = out.set("imatrix.chunk_count", f.chunks); !s) return s;
    if (status s = out.set("imatrix.chunk_size", f.chunk_size); !s) return s;
    for (const entry& e : f.entries) {
        const std::uint64_t matrices = e.counts.size();
        if (status s = out.add_tensor(e.name + ".in_sum2", ggml::type::f32, {matrices, e.sums.size() / matrices}); !s) return s;
        if (status s = out.add_tensor(e.name + ".counts", ggml::type::f32, {matrices, 1}); !s) return s;
    }
    if (status s = out.create(path); !s) return s;
    for (const entry& e : f.entries)
        for (const auto* numbers : {&e.sums, &e.counts})
            if (status s = out.write(std::as_bytes(std::span<const float>(*numbers))); !s) return s;
    return out.finish();
}

NIBBLE_IO_API status write_legacy(const std::filesystem::path& path, const file& f) {
    if (status s = detail::check_to_write(f); !s) return s;
    constexpr std::uint64_t most = 0x7fffffff;
    std::string text;
    detail::put(text, f.entries.size());
    auto out = output_file::create(path);
    if (!out) return {out.failure().code, out.failure().message};
    for (const entry& e : f.entries) {
        if (e.sums.size() > most || f.entries.size() > most) return {errc::out_of_range, "imatrix: " + detail::which(e.name) + "more than 2^31 values"};
        const float count = e.counts[0];
        const bool as_is = e.counts.size() == 1 && count <= 2147483520.0f && static_cast<float>(static_cast<std::int32_t>(count)) == count;
        const std::uint64_t calls = as_is ? static_cast<std::uint64_t>(count) : std::clamp<std::uint64_t>(f.chunks, 1, most);
        detail::put(text, e.name.size());
        text.append(e.name);
        detail::put(text, calls);
        detail::put(text, e.sums.size());
        std::vector<float> values = e.sums;
        if (!as_is) {
            const nibble::detail::fp_environment environment;
            const std::size_t cols = e.sums.size() / e.counts.size();
            for (std::size_t m = 0; m < e.counts.size(); ++m) detail::divide(e.sums.data() + m * cols, e.counts[m], cols, values.data() + m * cols);
            detail::multiply(values.data(), static_cast<float>(calls), values.size());
        }
        if (status s = out.value().write(std::as_bytes(std::span<const char>(text))); !s) return s;
        if (status s = out.value().write(std::as_bytes(std::span<const float>(values))); !s) return s;
        text.clear();
    }
    detail::put(text, (std::min)(std::uint64_t{f.chunks}, most));
    const std::string dataset = f.datasets.empty() ? std::string() : f.datasets[0];
    detail::put(text, dataset.size());
    text.append(dataset);
    if (status s = out.value().write(std::as_bytes(std::span<const char>(text))); !s) return s;
    return out.value().commit();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::imatrix
