// Sets of safetensors files with an index, as loaders of large checkpoints want them.
//
//     safetensors::write_shards("folder", tensors, {.shard_bytes = 5'000'000'000}).or_throw();
//
//   folder/model-00001-of-00003.safetensors ...      whole tensors, in the order they are given, at most shard_bytes each
//   folder/model.safetensors.index.json              {"metadata": {"total_size": bytes}, "weight_map": {"name": "file", ...}}
//
// Atomic as a set: the index is renamed into its place last, after every shard is on the disk, and shards never take the
// name of a file that exists (a second set is called model-1-00001-of-...). So a loader sees the old set or the whole new
// one. After a failure the new shards are removed. A process that is killed leaves behind partial files and shards that
// no index names; the set that the index names is whole. Shards of an older set are left alone.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include "output_file.hpp"
#include "safetensors_writer.hpp"

namespace nibble::inline NIBBLE_ABI::io::safetensors {

struct shard_options {
    std::uint64_t shard_bytes = 5'000'000'000;  ///< of tensors; a larger tensor gets a shard of its own
    std::string stem = "model";
    metadata_map metadata{};                    ///< of every shard
};

/// Writes a set into a folder that exists. Refuses what write() refuses, names that two tensors have, and a folder with a
/// file STEM.safetensors, which loaders would take in place of the set.
[[nodiscard]] NIBBLE_IO_API status write_shards(const std::filesystem::path& folder, std::span<const tensor> tensors,
                                                const shard_options& options = {});

#if NIBBLE_DEFINE_IO

namespace detail {

/// A set on its way to its folder. What was written is removed unless the index is in its place.
class shard_set {
public:
    shard_set(const std::filesystem::path& folder, std::span<const tensor> tensors, const shard_options& options)
        : folder_(folder), tensors_(tensors), options_(options) {}
    shard_set(const shard_set&) = delete;
    shard_set& operator=(const shard_set&) = delete;
    ~shard_set() {
        std::error_code ignored;
        for (const auto& path : written_) std::filesystem::remove(path, ignored);
    }

    [[nodiscard]] status write() {
        if (options_.stem.empty() || options_.stem.find_first_of("/\\:") != std::string::npos || !json_text(options_.stem))
            return {errc::invalid_argument, "safetensors: " + io::detail::quoted(options_.stem) + " cannot begin the name of a file"};
        if (exists(options_.stem + ".safetensors"))
            return {errc::invalid_argument, "safetensors: " + io::detail::quoted_path(in_folder(options_.stem + ".safetensors")) +
                                                " would be loaded in place of the shards"};
        split();
        while (taken()) ++generation_;
        for (std::size_t i = 0; i + 1 < first_.size(); ++i)
            if (status s = write_shard(i); !s) return s;
        return write_index();
    }

private:
    // The elements of first_ are where shards begin in tensors_, and the end.
    void split() {
        std::uint64_t bytes = 0;
        first_.push_back(0);
        for (std::size_t i = 0; i < tensors_.size(); ++i) {
            const std::uint64_t more = tensors_[i].bytes.size();
            if (i != first_.back() && (bytes > options_.shard_bytes || more > options_.shard_bytes - bytes)) {
                first_.push_back(i);
                bytes = 0;
            }
            bytes += more;
        }
        first_.push_back(tensors_.size());
    }
    [[nodiscard]] std::string name(std::size_t shard) const {
        char numbers[64];
        std::snprintf(numbers, sizeof numbers, "-%05zu-of-%05zu.safetensors", shard + 1, first_.size() - 1);
        return options_.stem + (generation_ == 0 ? std::string() : "-" + std::to_string(generation_)) + numbers;
    }
    [[nodiscard]] std::filesystem::path in_folder(const std::string& file) const {
        return folder_ / std::filesystem::path(std::u8string(file.begin(), file.end()));
    }
    [[nodiscard]] bool exists(const std::string& file) const {
        std::error_code ignored;
        return std::filesystem::exists(in_folder(file), ignored);
    }
    [[nodiscard]] bool taken() const {
        for (std::size_t i = 0; i + 1 < first_.size(); ++i)
            if (exists(name(i))) return true;
        return false;
    }

    [[nodiscard]] status write_shard(std::size_t shard) {
        const std::string file = name(shard);
        const auto part = tensors_.subspan(first_[shard], first_[shard + 1] - first_[shard]);
        for (const tensor& t : part) {
            if (!json_text(t.name)) return {errc::invalid_argument, "safetensors: " + io::detail::quoted(t.name) + " is not UTF-8"};
            if (!map_.emplace(t.name, file).second)
                return {errc::invalid_argument, "safetensors: tensor " + io::detail::quoted(t.name) + " is given twice"};
            total_ += t.bytes.size();
        }
        written_.push_back(in_folder(file));  // before there is a file: what follows may throw
        status s = safetensors::write(written_.back(), part, options_.metadata);
        return s;
    }
    [[nodiscard]] status write_index() {
        const nlohmann::json json = {{"metadata", {{"total_size", total_}}}, {"weight_map", map_}};
        const std::string text = json.dump(2) + "\n";
        auto file = output_file::create(in_folder(options_.stem + ".safetensors.index.json"));
        if (!file) return {file.failure().code, file.failure().message};
        if (status s = file.value().write(std::as_bytes(std::span<const char>(text))); !s) return s;
        if (status s = file.value().commit(); !s) return s;
        written_.clear();
        return {};
    }

    const std::filesystem::path& folder_;
    std::span<const tensor> tensors_;
    const shard_options& options_;
    std::vector<std::size_t> first_;
    unsigned generation_ = 0;
    metadata_map map_;  // the file of every tensor
    std::uint64_t total_ = 0;
    std::vector<std::filesystem::path> written_;
};

}  // namespace detail

NIBBLE_IO_API status write_shards(const std::filesystem::path& folder, std::span<const tensor> tensors,
                                  const shard_options& options) {
    return detail::shard_set(folder, tensors, options).write();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::safetensors
