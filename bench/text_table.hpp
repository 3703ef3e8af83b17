// Tables and paragraphs of plain text.
#pragma once

#include <string>
#include <vector>

namespace bench {

/// Columns as wide as their widest cell; the first and the last one to the left, numbers to the right.
class text_table {
public:
    void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
    /// With a line below the first `header_rows`.
    [[nodiscard]] std::string text(std::size_t header_rows) const;

private:
    std::vector<std::vector<std::string>> rows_;
};

/// A number with so many decimals, with its sign if asked for; "-" for NaN and Inf.
[[nodiscard]] std::string fixed(double x, int decimals, bool sign = false);

/// Words of a paragraph in lines of 120 characters: `label` before the first line, as many spaces before the others.
[[nodiscard]] std::string wrapped(const std::string& label, const std::string& paragraph);

}  // namespace bench
