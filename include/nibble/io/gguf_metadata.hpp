// The values of a GGUF file's metadata: views of the file's bytes, decoded when they are looked at.
//
// A value is a number of 8 to 64 bits, a bool, a text or an array of one of these types, arrays of arrays included.
// Texts are whatever bytes the file has: UTF-8 by the format, but nobody checked. Escape them before they are shown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "../error.hpp"
#include "file.hpp"

namespace nibble::inline NIBBLE_ABI::io::gguf {

/// The types of metadata values, with their numbers in the file.
enum class value_type : std::uint32_t {
    u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6, boolean = 7, text = 8, array = 9, u64 = 10, i64 = 11, f64 = 12,
};

/// "u32", "text", "array"; "?" for a number that is no type.
[[nodiscard]] constexpr std::string_view name_of(value_type t) noexcept {
    constexpr std::string_view names[] = {"u8",   "i8",   "u16",   "i16", "u32", "i32", "f32",
                                          "bool", "text", "array", "u64", "i64", "f64"};
    const auto i = static_cast<std::size_t>(t);
    return i < std::size(names) ? names[i] : std::string_view("?");
}

namespace detail {

/// The most that arrays may be nested, whatever the limits of a reader say: functions that walk them are recursive.
inline constexpr unsigned deepest_array = 16;

/// Bytes of a value of a type of fixed size; 0 for text, array and numbers that are no type.
[[nodiscard]] constexpr std::size_t fixed_size(value_type t) noexcept {
    constexpr std::uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    const auto i = static_cast<std::size_t>(t);
    return i < std::size(sizes) ? sizes[i] : 0;
}
/// The least that a value of the type takes.
[[nodiscard]] constexpr std::size_t least_size(value_type t) noexcept {
    return t == value_type::text ? 8 : t == value_type::array ? 12 : fixed_size(t);
}

/// A little-endian unsigned number.
template <class U>
[[nodiscard]] U load(const std::byte* at) noexcept {
    U u = 0;
    for (std::size_t i = 0; i < sizeof(U); ++i) u = static_cast<U>(u | static_cast<U>(static_cast<U>(at[i]) << (8 * i)));
    return u;
}

/// Bytes that a value of type t takes at the beginning of `from`; nothing if it does not end there. `deep` more levels
/// of arrays may follow.
[[nodiscard]] inline std::optional<std::size_t> extent(value_type t, std::span<const std::byte> from, unsigned deep) noexcept {
    if (const std::size_t size = fixed_size(t); size != 0)
        return from.size() < size ? std::nullopt : std::optional<std::size_t>(size);
    if (t == value_type::text) {
        if (from.size() < 8) return std::nullopt;
        const auto length = load<std::uint64_t>(from.data());
        if (length > from.size() - 8) return std::nullopt;
        return length + 8;
    }
    if (t != value_type::array || from.size() < 12 || deep == 0) return std::nullopt;
    const auto inner = static_cast<value_type>(load<std::uint32_t>(from.data()));
    const auto count = load<std::uint64_t>(from.data() + 4);
    if (least_size(inner) == 0 || count > (from.size() - 12) / least_size(inner)) return std::nullopt;
    if (const std::size_t size = fixed_size(inner); size != 0) return 12 + count * size;
    std::size_t at = 12;
    for (std::uint64_t i = 0; i < count; ++i) {
        const auto size = extent(inner, from.subspan(at), deep - 1);
        if (!size) return std::nullopt;
        at += *size;
    }
    return at;
}

}  // namespace detail

class array;

/// One value. A view: it lasts as long as the bytes of the file.
class value {
public:
    value() noexcept = default;
    value(value_type type, std::span<const std::byte> bytes) noexcept : type_(type), bytes_(bytes) {}

    [[nodiscard]] value_type type() const noexcept { return type_; }
    /// What the file has of it, with the lengths of texts and arrays.
    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

    /// An integer of any type that is not negative.
    [[nodiscard]] std::optional<std::uint64_t> as_unsigned() const noexcept {
        if (is_unsigned()) return bits();
        const std::optional<std::int64_t> i = as_signed();
        if (!i || *i < 0) return std::nullopt;
        return static_cast<std::uint64_t>(*i);
    }
    /// An integer of any type below 2^63.
    [[nodiscard]] std::optional<std::int64_t> as_signed() const noexcept {
        if (is_unsigned()) {
            const std::uint64_t u = bits();
            if (u > static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)())) return std::nullopt;
            return static_cast<std::int64_t>(u);
        }
        if (!is_signed()) return std::nullopt;
        const unsigned above = static_cast<unsigned>(64 - 8 * detail::fixed_size(type_));
        return static_cast<std::int64_t>(bits() << above) >> above;
    }
    /// An f32 or f64.
    [[nodiscard]] std::optional<double> as_double() const noexcept {
        if (type_ == value_type::f32 && bytes_.size() >= 4) {
            const auto u = detail::load<std::uint32_t>(bytes_.data());
            float f;
            std::memcpy(&f, &u, 4);
            return static_cast<double>(f);
        }
        if (type_ != value_type::f64 || bytes_.size() < 8) return std::nullopt;
        const auto u = detail::load<std::uint64_t>(bytes_.data());
        double d;
        std::memcpy(&d, &u, 8);
        return d;
    }
    [[nodiscard]] std::optional<bool> as_bool() const noexcept {
        if (type_ != value_type::boolean || bytes_.empty()) return std::nullopt;
        return bytes_[0] != std::byte{0};
    }
    [[nodiscard]] std::optional<std::string_view> as_text() const noexcept {
        if (type_ != value_type::text || bytes_.size() < 8) return std::nullopt;
        return std::string_view(reinterpret_cast<const char*>(bytes_.data()) + 8, bytes_.size() - 8);
    }
    /// The elements of an array; none of any other type. By value, so that `for (const value v : meta->elements())` is
    /// safe, which a loop over *optional would not be.
    [[nodiscard]] array elements() const noexcept;

private:
    // With all their bytes.
    [[nodiscard]] bool is_unsigned() const noexcept {
        return bytes_.size() == detail::fixed_size(type_) && (type_ == value_type::u8 || type_ == value_type::u16 ||
                                                              type_ == value_type::u32 || type_ == value_type::u64);
    }
    [[nodiscard]] bool is_signed() const noexcept {
        return bytes_.size() == detail::fixed_size(type_) && (type_ == value_type::i8 || type_ == value_type::i16 ||
                                                              type_ == value_type::i32 || type_ == value_type::i64);
    }
    [[nodiscard]] std::uint64_t bits() const noexcept {
        std::uint64_t u = 0;
        for (std::size_t i = 0; i < bytes_.size(); ++i) u |= static_cast<std::uint64_t>(bytes_[i]) << (8 * i);
        return u;
    }

    value_type type_ = value_type::u8;
    std::span<const std::byte> bytes_;
};

/// The elements of an array value, in order. There is no table of them: texts and arrays are found by walking, so iterate
/// rather than index them.
class array {
public:
    /// Never walks past the end of its bytes, whatever they hold: what does not fit ends the array.
    class iterator {
    public:
        using iterator_category = std::forward_iterator_tag;
        using value_type = gguf::value;
        using difference_type = std::ptrdiff_t;
        using pointer = void;
        using reference = gguf::value;

        iterator() noexcept = default;
        iterator(gguf::value_type type, std::uint64_t left, std::span<const std::byte> rest) noexcept
            : type_(type), left_(left), rest_(rest) {
            measure();
        }
        [[nodiscard]] gguf::value operator*() const noexcept { return {type_, rest_.first(size_)}; }
        iterator& operator++() noexcept {
            rest_ = rest_.subspan(size_);
            --left_;
            measure();
            return *this;
        }
        iterator operator++(int) noexcept {
            const iterator before = *this;
            ++*this;
            return before;
        }
        /// Of iterators of one array.
        friend bool operator==(const iterator& a, const iterator& b) noexcept { return a.left_ == b.left_; }

    private:
        void measure() noexcept {
            if (left_ == 0) return;
            const auto size = detail::extent(type_, rest_, detail::deepest_array);
            if (size) size_ = *size;
            else left_ = 0;
        }

        gguf::value_type type_ = gguf::value_type::u8;
        std::uint64_t left_ = 0;
        std::size_t size_ = 0;  // of the current element
        std::span<const std::byte> rest_;
    };

    array() noexcept = default;
    array(value_type element, std::uint64_t size, std::span<const std::byte> elements) noexcept
        : element_(element), size_(size), elements_(elements) {}

    [[nodiscard]] value_type element_type() const noexcept { return element_; }
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return elements_; }
    [[nodiscard]] iterator begin() const noexcept { return {element_, size_, elements_}; }
    [[nodiscard]] iterator end() const noexcept { return {}; }

    /// Element i < size(): at once for numbers and bools, after i steps for texts and arrays.
    [[nodiscard]] std::optional<value> at(std::uint64_t i) const noexcept {
        if (i >= size_) return std::nullopt;
        if (const std::size_t size = detail::fixed_size(element_); size != 0) {
            if (i >= elements_.size() / size) return std::nullopt;
            return value(element_, elements_.subspan(i * size, size));
        }
        for (const value v : *this)
            if (i-- == 0) return v;
        return std::nullopt;
    }

private:
    value_type element_ = value_type::u8;
    std::uint64_t size_ = 0;
    std::span<const std::byte> elements_;
};

inline array value::elements() const noexcept {
    if (type_ != value_type::array || bytes_.size() < 12) return {};
    return array(static_cast<value_type>(detail::load<std::uint32_t>(bytes_.data())),
                 detail::load<std::uint64_t>(bytes_.data() + 4), bytes_.subspan(12));
}

/// One entry of the metadata.
struct metadata_entry {
    std::string_view key;
    gguf::value value;
};

}  // namespace nibble::io::gguf
