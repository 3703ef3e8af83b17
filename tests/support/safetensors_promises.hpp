// What the safetensors reader promises of any bytes, and a second reader, written another way; shared by the tests and the
// fuzz target.
#pragma once

#include <nlohmann/json.hpp>
#include <nibble/io/safetensors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace safetensors_promises {

namespace st = nibble::io::safetensors;

/// Everything the reader promises of a file it accepts, found out again from its answer. Also touches every byte.
[[nodiscard]] inline std::string broken_promise(const st::file& file, std::span<const std::byte> all) {
    std::uint64_t used = 0;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    unsigned touched = 0;
    for (const st::tensor& t : file.tensors()) {
        if (file.find(t.name) != &t) return "find does not find " + t.name;
        if (t.offset < file.buffer_offset() || t.offset > all.size()) return "offset of " + t.name;
        if (t.bytes.size() > all.size() - t.offset) return "end of " + t.name;
        if (!t.bytes.empty() && t.bytes.data() != all.data() + t.offset) return "place of " + t.name;
        if (t.elements() * st::bits_of(t.type) != t.bytes.size() * 8) return "size of " + t.name;
        for (const std::byte b : t.bytes) touched += std::to_integer<unsigned>(b);
        used += t.bytes.size();
        if (!t.bytes.empty()) ranges.emplace_back(t.offset, t.offset + t.bytes.size());
    }
    static volatile unsigned sink = 0;
    sink = sink + touched;
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i)
        if (ranges[i - 1].second > ranges[i].first) return "overlap";
    if (file.unused_bytes() != all.size() - file.buffer_offset() - used) return "unused_bytes";
    return "";
}

/// A second reader: a DOM, exact big numbers by division, and an all-pairs overlap test. True if the file is acceptable.
[[nodiscard]] inline bool acceptable(std::string_view bytes) {
    using nlohmann::json;
    if (bytes.size() < 8) return false;
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    if (length > bytes.size() - 8 || length == 0 || length > 100'000'000) return false;
    std::string_view header = bytes.substr(8);
    const std::uint64_t room = header.size() - length;
    header.remove_suffix(room);
    while (header.ends_with(' ')) header.remove_suffix(1);
    if (!header.starts_with('{') || !header.ends_with('}') || header.find('\0') != std::string_view::npos) return false;

    bool repeated = false;
    std::vector<std::set<std::string>> keys;
    const json root = json::parse(
        header.begin(), header.end(),
        [&](int, json::parse_event_t event, json& value) {
            if (event == json::parse_event_t::object_start) keys.emplace_back();
            if (event == json::parse_event_t::object_end) keys.pop_back();
            if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
                repeated = true;
            return true;
        },
        false);
    if (root.is_discarded() || repeated) return false;

    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (const auto& [name, entry] : root.items()) {
        if (!entry.is_object()) return false;
        if (name == "__metadata__") {
            for (const json& value : entry)
                if (!value.is_string()) return false;
            continue;
        }
        if (entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") ||
            !entry.contains("data_offsets"))
            return false;
        if (!entry["dtype"].is_string() || !entry["shape"].is_array() || !entry["data_offsets"].is_array())
            return false;
        const auto type = st::dtype_named(entry["dtype"].get<std::string>());
        if (!type || entry["data_offsets"].size() != 2 || entry["shape"].size() > 64) return false;
        for (const char* field : {"shape", "data_offsets"})
            for (const json& n : entry[field])
                if (!n.is_number_unsigned()) return false;
        const auto begin = entry["data_offsets"][0].get<std::uint64_t>();
        const auto end = entry["data_offsets"][1].get<std::uint64_t>();
        if (begin > end || end > room) return false;
        // The bits divided by every dimension in turn must come out as the bits of one element.
        std::uint64_t bits = (end - begin) * 8;
        bool empty = false;
        std::uint64_t product = st::bits_of(*type);
        for (const json& n : entry["shape"]) {
            const auto d = n.get<std::uint64_t>();
            if (d == 0) {
                empty = true;
                continue;
            }
            if (product > UINT64_MAX / d) return false;
            product *= d;
            if (bits % d != 0 && !empty) bits = 1;  // never the bits of an element
            else bits /= d;
        }
        if (empty ? begin != end : bits != st::bits_of(*type)) return false;
        for (const auto& [b, e] : ranges)
            if (begin < e && b < end && begin != end) return false;
        if (begin != end) ranges.emplace_back(begin, end);
    }
    return true;
}

}  // namespace safetensors_promises
