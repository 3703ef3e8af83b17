// What the checkpoint layouts share: tensors, and checks of them before their data is touched.
//
// A layout is a header of this folder: plain functions from tensors of a safetensors file to a layer and back. They need
// no file: a tensor made by hand (name, type, shape, bytes) will do. What holds for all of them:
//
//   before data is touched   every dtype, every shape against every other, and that a tensor has the bytes of its shape
//   before a layer is made   scales and float zeros are finite, indices are in range; the message names the element
//   dimensions               below 2^31, and at most 1,000,000 beside a 0
//   memory                   about the bytes of the layer's tensors; where every weight needs a scale of its own at most
//                            25 times as many, and 72 times for 1-bit HQQ of axis 0. Rows are padded to 16
#pragma once

#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../../formats/list.hpp"
#include "../../qmatrix.hpp"
#include "../safetensors.hpp"
#include "../safetensors_writer.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts {

using safetensors::dtype;
using safetensors::tensor;
using safetensors::tensor_data;

namespace detail {

using nibble::detail::ceil_div;

[[nodiscard]] inline std::string numbers(std::initializer_list<index> shape) {
    std::string out = "[";
    for (const index d : shape) out.append(out.size() == 1 ? "" : ", ").append(std::to_string(d));
    return out.append("]");
}

/// "[3, 17]": the place of element i of a tensor.
[[nodiscard]] inline std::string place(const tensor& t, index i) {
    std::string out = "]";
    auto left = static_cast<std::uint64_t>(i);
    for (std::size_t d = t.shape.size(); d-- > 0;) {
        const std::string number = std::to_string(left % t.shape[d]);
        out.insert(0, d == 0 ? number : std::string(", ").append(number));
        left /= t.shape[d];
    }
    return out.insert(0, "[");
}

/// Element i of a tensor, which need not be aligned.
template <class T>
[[nodiscard]] inline T at(const tensor& t, index i) noexcept {
    T value;
    std::memcpy(&value, t.bytes.data() + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    return value;
}

/// The scheme that stores scales of a dtype, bit for bit; `none` where there is none.
[[nodiscard]] constexpr scale_scheme scheme_of(dtype t) noexcept {
    switch (t) {
        case dtype::f32: return scales::f32;
        case dtype::f16: return scales::f16;
        case dtype::bf16: return scales::bf16;
        default: return scales::none;
    }
}
/// The bits of element i of an F32, F16 or BF16 tensor.
[[nodiscard]] inline std::uint32_t bits_at(const tensor& t, index i) noexcept {
    return t.type == dtype::f32 ? at<std::uint32_t>(t, i) : at<std::uint16_t>(t, i);
}
/// Its value, exactly.
[[nodiscard]] inline float float_at(const tensor& t, index i) noexcept {
    return nibble::detail::decode_stored(scheme_of(t.type).storage, bits_at(t, i));
}
[[nodiscard]] inline bool finite_at(const tensor& t, index i) noexcept {
    const std::uint32_t u = bits_at(t, i);
    if (t.type == dtype::f32) return (u & 0x7f800000u) != 0x7f800000u;
    return t.type == dtype::f16 ? (u & 0x7c00u) != 0x7c00u : (u & 0x7f80u) != 0x7f80u;
}

inline constexpr std::initializer_list<dtype> float_types = {dtype::f32, dtype::f16, dtype::bf16};

/// The checks of one layer: the first that fails is kept, and those after it do nothing.
class checks {
public:
    explicit checks(const char* layout) noexcept : layout_(layout) {}

    [[nodiscard]] explicit operator bool() const noexcept { return !failed_; }
    [[nodiscard]] nibble::failure failure() && { return std::move(why_); }

    /// Not about one tensor.
    void fail(errc code, std::string_view text) {
        if (failed_) return;
        failed_ = true;
        why_ = {code, std::string(layout_).append(": ").append(text), 0};
    }
    void fail(errc code, const tensor& t, std::string_view need) {
        if (failed_) return;
        fail(code, "tensor " + io::detail::quoted(t.name) + " is " + t.describe() + ": " + std::string(need));
        why_.offset = t.offset;
    }
    /// Element i of a tensor is at fault.
    void fail_at(const tensor& t, index i, std::string_view what) {
        if (failed_) return;
        fail(errc::malformed, t, "element " + place(t, i) + " " + std::string(what));
        why_.offset = t.offset + static_cast<std::uint64_t>(i) * safetensors::bits_of(t.type) / 8;
    }

    void type(const tensor& t, std::initializer_list<dtype> allowed) {
        if (failed_) return;
        std::string need = "expected ";
        for (const dtype a : allowed) {
            if (a == t.type) return;
            need.append(need.size() == 9 ? "" : " or ").append(safetensors::name_of(a));
        }
        fail(errc::malformed, t, need);
    }
    void rank(const tensor& t, std::size_t dimensions) {
        if (t.shape.size() != dimensions)
            fail(errc::malformed, t, "expected " + std::to_string(dimensions) + " dimensions");
    }
    /// Dimension d as an index; 0 after a failure.
    [[nodiscard]] index dim(const tensor& t, std::size_t d) {
        if (failed_) return 0;
        if (d >= t.shape.size() || t.shape[d] > 0x7fffffffu) {
            fail(errc::malformed, t, "expected dimensions from 0 to 2^31 - 1");
            return 0;
        }
        return static_cast<index>(t.shape[d]);
    }
    /// The shape, and the bytes that go with it.
    void shape(const tensor& t, std::initializer_list<index> wanted) {
        if (failed_) return;
        const bool same =
            std::equal(wanted.begin(), wanted.end(), t.shape.begin(), t.shape.end(),
                       [](index w, std::uint64_t d) { return w >= 0 && static_cast<std::uint64_t>(w) == d; });
        if (!same) return fail(errc::shape_mismatch, t, "expected " + numbers(wanted));
        const bool empty = std::find(wanted.begin(), wanted.end(), 0) != wanted.end();
        if (empty && std::any_of(wanted.begin(), wanted.end(), [](index d) { return d > most_beside_zero; }))
            return fail(errc::out_of_range, t, "expected dimensions of at most 1000000 where there are no elements");
        std::uint64_t bits = empty ? 0 : safetensors::bits_of(t.type);
        for (const index d : wanted) {
            if (io::detail::mul_overflows(bits, static_cast<std::uint64_t>(d)))
                return fail(errc::out_of_range, t, "it is too large");
            bits *= static_cast<std::uint64_t>(d);
        }
        if (bits / 8 + (bits % 8 != 0 ? 1 : 0) != t.bytes.size())
            fail(errc::malformed, t, "it has " + std::to_string(t.bytes.size()) + " bytes, not those of its shape");
    }
    /// A shape that stands in a file as numbers.
    void matrix(index rows, index cols) {
        if (rows < 0 || cols < 0 || rows > 0x7fffffff || cols > 0x7fffffff ||
            (rows * cols == 0 && (rows > most_beside_zero || cols > most_beside_zero)))
            fail(errc::malformed, "a layer of " + nibble::detail::shape_text(rows, cols));
    }
    /// All elements of an F32, F16 or BF16 tensor are finite.
    void finite(const tensor& t) {
        if (failed_) return;
        const auto count = static_cast<index>(t.elements());
        for (index i = 0; i < count; ++i)
            if (!finite_at(t, i)) return fail_at(t, i, "is NaN or Inf");
    }
    /// No byte u of a tensor has u & mask == value.
    void no_byte(const tensor& t, unsigned mask, unsigned value, std::string_view what) {
        if (failed_) return;
        const auto* u = reinterpret_cast<const std::uint8_t*>(t.bytes.data());
        const std::size_t size = t.bytes.size();
        std::size_t i = 0;
        for (bool found = false; size - i >= 64 && !found; i += found ? 0 : 64) {  // pieces that vectorize
            std::uint8_t any = 0;
            for (std::size_t j = 0; j < 64; ++j)
                any = static_cast<std::uint8_t>(any | ((u[i + j] & mask) == value ? 1 : 0));
            found = any != 0;
        }
        for (; i < size; ++i)
            if ((u[i] & mask) == value) return fail_at(t, static_cast<index>(i), what);
    }
    /// No byte of an 8-bit floating-point format means NaN or Inf.
    void finite_codes(const tensor& t, const code_format& format) {
        constexpr std::string_view what = "is NaN or Inf";
        if (&format == &fp8_e4m3::format)
            no_byte(t, 0x7f, 0x7f, what);
        else if (&format == &fp8_e5m2::format)
            no_byte(t, 0x7c, 0x7c, what);
        else
            no_byte(t, 0xff, 0x80, what);  // FNUZ
    }

private:
    static constexpr index most_beside_zero = 1'000'000;  // a loop over rows of nothing should end

    const char* layout_;
    bool failed_ = false;
    nibble::failure why_;
};

}  // namespace detail
}  // namespace nibble::io::layouts
