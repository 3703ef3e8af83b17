// One tensor of a safetensors file: its type, its shape, its elements. Part of safetensors.hpp, which has the format.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../error.hpp"
#include "../formats/half.hpp"
#include "../view.hpp"
#include "file.hpp"

namespace nibble::inline NIBBLE_ABI::io::safetensors {

/// Every element type of the format.
enum class dtype : std::uint8_t {
    boolean, f4, f6_e2m3, f6_e3m2, u8, i8, f8_e5m2, f8_e4m3, f8_e8m0, f8_e4m3fnuz, f8_e5m2fnuz,
    i16, u16, f16, bf16, i32, u32, f32, c64, f64, i64, u64,
};

namespace detail {

struct dtype_entry {
    dtype type;
    std::string_view name;  // as the header spells it
    unsigned bits;
};

inline constexpr std::array<dtype_entry, 22> dtypes = {{
    {dtype::boolean, "BOOL", 8},
    {dtype::f4, "F4", 4},
    {dtype::f6_e2m3, "F6_E2M3", 6},
    {dtype::f6_e3m2, "F6_E3M2", 6},
    {dtype::u8, "U8", 8},
    {dtype::i8, "I8", 8},
    {dtype::f8_e5m2, "F8_E5M2", 8},
    {dtype::f8_e4m3, "F8_E4M3", 8},
    {dtype::f8_e8m0, "F8_E8M0", 8},
    {dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {dtype::i16, "I16", 16},
    {dtype::u16, "U16", 16},
    {dtype::f16, "F16", 16},
    {dtype::bf16, "BF16", 16},
    {dtype::i32, "I32", 32},
    {dtype::u32, "U32", 32},
    {dtype::f32, "F32", 32},
    {dtype::c64, "C64", 64},  // two F32: real, imaginary
    {dtype::f64, "F64", 64},
    {dtype::i64, "I64", 64},
    {dtype::u64, "U64", 64},
}};

static_assert(
    [] {
        for (std::size_t i = 0; i < dtypes.size(); ++i)
            if (static_cast<std::size_t>(dtypes[i].type) != i) return false;
        return true;
    }(),
    "the table is indexed by dtype");

[[nodiscard]] inline std::string shape_text(std::span<const std::uint64_t> shape) {
    std::string out = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return out + "]";
}

}  // namespace detail

/// How the format spells a dtype: "F16".
[[nodiscard]] constexpr std::string_view name_of(dtype t) noexcept {
    return detail::dtypes[static_cast<std::size_t>(t)].name;
}
/// Bits of one element: 4, 6, 8, 16, 32 or 64.
[[nodiscard]] constexpr unsigned bits_of(dtype t) noexcept {
    return detail::dtypes[static_cast<std::size_t>(t)].bits;
}
/// The dtype of that spelling, if there is one.
[[nodiscard]] constexpr std::optional<dtype> dtype_named(std::string_view name) noexcept {
    for (const auto& entry : detail::dtypes)
        if (entry.name == name) return entry.type;
    return std::nullopt;
}

/// C++ types that are the same thing as a dtype. BOOL is not among them (a byte other than 0 and 1 is no bool), nor are
/// the types C++ has no word for: read those through `bytes`.
template <class T>
concept element =
    std::same_as<T, std::int8_t> || std::same_as<T, std::uint8_t> || std::same_as<T, std::int16_t> ||
    std::same_as<T, std::uint16_t> || std::same_as<T, std::int32_t> || std::same_as<T, std::uint32_t> ||
    std::same_as<T, std::int64_t> || std::same_as<T, std::uint64_t> || std::same_as<T, float> ||
    std::same_as<T, double>;

template <element T>
[[nodiscard]] constexpr dtype dtype_of() noexcept {
    if constexpr (std::same_as<T, std::int8_t>) return dtype::i8;
    else if constexpr (std::same_as<T, std::uint8_t>) return dtype::u8;
    else if constexpr (std::same_as<T, std::int16_t>) return dtype::i16;
    else if constexpr (std::same_as<T, std::uint16_t>) return dtype::u16;
    else if constexpr (std::same_as<T, std::int32_t>) return dtype::i32;
    else if constexpr (std::same_as<T, std::uint32_t>) return dtype::u32;
    else if constexpr (std::same_as<T, std::int64_t>) return dtype::i64;
    else if constexpr (std::same_as<T, std::uint64_t>) return dtype::u64;
    else if constexpr (std::same_as<T, float>) return dtype::f32;
    else return dtype::f64;
}

/// One tensor of a file.
struct tensor {
    std::string name;
    dtype type = dtype::u8;
    std::vector<std::uint64_t> shape;  ///< outermost dimension first; empty for a scalar
    std::span<const std::byte> bytes;  ///< the elements; not necessarily aligned for their type
    std::uint64_t offset = 0;          ///< where in the file `bytes` begins

    /// Number of elements: 1 for a scalar, 0 when a dimension is 0.
    [[nodiscard]] std::uint64_t elements() const noexcept {
        std::uint64_t n = 1;
        for (const std::uint64_t d : shape) n *= d;
        return n;
    }

    /// "F16 [2, 3]"
    [[nodiscard]] std::string describe() const {
        return std::string(name_of(type)) + " " + detail::shape_text(shape);
    }

    /// A matrix of F32, F64, F16 or BF16, in place. The data of a view may be unaligned: a file decides.
    [[nodiscard]] result<const_view> view() const {
        std::optional<scalar_type> scalar;
        if (type == dtype::f32) scalar = scalar_type::f32;
        if (type == dtype::f64) scalar = scalar_type::f64;
        if (type == dtype::f16) scalar = scalar_type::f16;
        if (type == dtype::bf16) scalar = scalar_type::bf16;
        if (!scalar.has_value()) return refuse(errc::unsupported, "a view needs F32, F64, F16 or BF16");
        if (shape.size() != 2) return refuse(errc::shape_mismatch, "a view needs two dimensions");
        // Only a matrix without elements can get here with dimensions that an index cannot hold.
        constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<index>::max)());
        if (shape[0] > most || shape[1] > most) return refuse(errc::out_of_range, "a view needs dimensions below 2^63");
        const auto rows = static_cast<index>(shape[0]);
        const auto cols = static_cast<index>(shape[1]);
        return const_view{bytes.data(), *scalar, rows, cols, cols, 1};
    }

    /// The elements in place, as the C++ type that is exactly the dtype. Refuses data that is not aligned for T
    /// (copy_to does not).
    template <element T>
    [[nodiscard]] result<std::span<const T>> as() const {
        if (type != dtype_of<T>()) return refuse(errc::unsupported, needs<T>());
        if (bytes.empty()) return std::span<const T>{};
        const void* const first = bytes.data();
        if (reinterpret_cast<std::uintptr_t>(first) % alignof(T) != 0)
            return refuse(errc::unsupported, "the data is not aligned for its type (copy_to takes it)");
        return std::span<const T>{static_cast<const T*>(first), bytes.size() / sizeof(T)};
    }

    /// The elements copied out, wherever they lie.
    template <element T>
    [[nodiscard]] status copy_to(std::vector<T>& out) const {
        if (type != dtype_of<T>()) return wrong(errc::unsupported, needs<T>());
        out.resize(bytes.size() / sizeof(T));
        if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
        return {};
    }

    /// The elements as floats: exact for F32, F16 and BF16; F64 is rounded by the machine. Any shape.
    [[nodiscard]] status to_floats(std::vector<float>& out) const {
        if (type == dtype::f32) return copy_to(out);
        if (type == dtype::f16) return convert<std::uint16_t>(out, [](std::uint16_t h) { return fp16_to_float(h); });
        if (type == dtype::bf16) return convert<std::uint16_t>(out, [](std::uint16_t h) { return bf16_to_float(h); });
        if (type == dtype::f64) return convert<double>(out, [](double x) { return static_cast<float>(x); });
        return wrong(errc::unsupported, "to_floats needs F32, F64, F16 or BF16");
    }

private:
    template <element T>
    [[nodiscard]] static std::string needs() {
        return "this C++ type needs " + std::string(name_of(dtype_of<T>()));
    }

    [[nodiscard]] status wrong(errc code, std::string_view need) const {
        return {code, "tensor " + io::detail::quoted(name) + " is " + describe() + ": " + std::string(need)};
    }
    [[nodiscard]] failure refuse(errc code, std::string_view need) const {
        return {code, wrong(code, need).message(), offset};
    }

    template <class T, class Convert>
    [[nodiscard]] status convert(std::vector<float>& out, Convert to_float) const {
        out.resize(bytes.size() / sizeof(T));
        for (std::size_t i = 0; i < out.size(); ++i) {
            T value;
            std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
            out[i] = to_float(value);
        }
        return {};
    }
};

}  // namespace nibble::io::safetensors
