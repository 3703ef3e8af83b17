#include "text_table.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>

namespace bench {
namespace {

constexpr std::size_t text_width = 120;

}  // namespace

std::string text_table::text(std::size_t header_rows) const {
    std::vector<std::size_t> width;
    for (const auto& cells : rows_) {
        width.resize((std::max)(width.size(), cells.size()));
        for (std::size_t c = 0; c < cells.size(); ++c) width[c] = (std::max)(width[c], cells[c].size());
    }
    std::string out;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
        std::string line;
        for (std::size_t c = 0; c < rows_[i].size(); ++c) {
            const std::string& cell = rows_[i][c];
            const std::string space(width[c] - cell.size(), ' ');
            const bool left = c == 0 || c + 1 == width.size();
            line += (c == 0 ? "" : "  ") + (left ? cell + space : space + cell);
        }
        out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
        if (i + 1 == header_rows) {
            std::size_t all = 2 * (width.size() - 1);
            for (const std::size_t w : width) all += w;
            out += std::string(all, '-') + "\n";
        }
    }
    return out;
}

std::string wrapped(const std::string& label, const std::string& paragraph) {
    std::string out;
    std::string line = label;
    std::istringstream words(paragraph);
    for (std::string word; words >> word;) {
        if (line.size() > label.size() && line.size() + 1 + word.size() > text_width) {
            out.append(line).append("\n");
            line.assign(label.size(), ' ');
        }
        if (line.size() > label.size()) line += " ";
        line += word;
    }
    return out.append(line).append("\n");
}

std::string fixed(double x, int decimals, bool sign) {
    if (!std::isfinite(x)) return "-";
    char text[48];
    std::snprintf(text, sizeof text, sign ? "%+.*f" : "%.*f", decimals, x);
    return text;
}

}  // namespace bench
