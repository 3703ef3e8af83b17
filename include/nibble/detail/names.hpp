// Names of strangers: how they are shown, sorted, found, and which come near one that is not there.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../config.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

/// Text from a file as it may be shown to a person: at most `limit` bytes of it, and nothing in it that a terminal
/// would obey. Everything outside printable ASCII is \xNN.
[[nodiscard]] inline std::string printable(std::string_view text, std::size_t limit) {
    constexpr const char* hex = "0123456789abcdef";
    std::string out;
    for (const char c : text.substr(0, limit)) {
        const unsigned u = static_cast<unsigned char>(c);
        if (u >= 0x20 && u < 0x7f) {
            out += c;
        } else {
            out += "\\x";
            out += hex[u >> 4];
            out += hex[u & 15];
        }
    }
    if (text.size() > limit) out += "... (" + std::to_string(text.size()) + " bytes)";
    return out;
}

/// The same between quotes.
[[nodiscard]] inline std::string quoted(std::string_view text, std::size_t limit = 120) {
    std::string out = "\"";  // append: GCC 12 sees an overlap in "..." + std::string at -O3
    out.append(printable(text, limit)).append("\"");
    return out;
}

/// How far two names are apart: what is left of the longer one without the common beginning and the common end. Unlike
/// an edit distance it costs O(length), and it catches what people do to names: one wrong part.
[[nodiscard]] constexpr std::size_t name_distance(std::string_view a, std::string_view b) noexcept {
    const std::size_t shorter = a.size() < b.size() ? a.size() : b.size();
    const std::size_t longer = a.size() < b.size() ? b.size() : a.size();
    std::size_t front = 0;
    while (front < shorter && a[front] == b[front]) ++front;
    std::size_t back = 0;
    while (back < shorter - front && a[a.size() - 1 - back] == b[b.size() - 1 - back]) ++back;
    return longer - front - back;
}

// In these, `all` is a container with indices, and name(element) gives text that lives as long as the element.

/// ; nearest of 24: "a", "b", "c": what a message says after a name that is not among `all`.
template <class Container, class Name>
[[nodiscard]] std::string nearest_names(std::string_view wanted, const Container& all, Name name) {
    if (all.size() == 0) return "; there are none";
    struct candidate {
        std::size_t at = 0, distance = static_cast<std::size_t>(-1);
    };
    std::array<candidate, 3> best{};
    for (std::size_t i = 0; i < all.size(); ++i) {
        candidate c{i, name_distance(wanted, name(all[i]))};
        for (candidate& b : best)
            if (c.distance < b.distance) std::swap(b, c);
    }
    std::string out = "; nearest of " + std::to_string(all.size()) + ": ";
    for (std::size_t i = 0; i < best.size() && i < all.size(); ++i)
        out.append(i == 0 ? "" : ", ").append(quoted(name(all[best[i].at])));
    return out;
}

/// The indices of `all` in the order of the names; equal names in the order of their indices. Sorted rather than hashed:
/// hostile names cannot make it slow.
template <class Container, class Name>
[[nodiscard]] std::vector<std::uint32_t> sorted_by_name(const Container& all, Name name) {
    std::vector<std::uint32_t> order(all.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
    std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
        const int c = std::string_view(name(all[a])).compare(name(all[b]));
        return c != 0 ? c < 0 : a < b;
    });
    return order;
}
/// The place in a sorted order of the first name that its predecessor has, too; order.size() if all differ.
template <class Container, class Name>
[[nodiscard]] std::size_t first_repeated(const Container& all, const std::vector<std::uint32_t>& order, Name name) {
    std::size_t i = 1;
    while (i < order.size() && name(all[order[i]]) != name(all[order[i - 1]])) ++i;
    return i < order.size() ? i : order.size();
}
/// The element of that name, or null.
template <class Container, class Name>
[[nodiscard]] auto find_named(const Container& all, const std::vector<std::uint32_t>& order, std::string_view wanted,
                              Name name) noexcept -> decltype(&all[0]) {
    const auto at = std::lower_bound(order.begin(), order.end(), wanted, [&](std::uint32_t i, std::string_view w) {
        return std::string_view(name(all[i])) < w;
    });
    return at != order.end() && name(all[*at]) == wanted ? &all[*at] : nullptr;
}

}  // namespace nibble::detail
