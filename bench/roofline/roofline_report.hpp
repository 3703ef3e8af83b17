// A run of the roofline as text and as JSON.
#pragma once

#include <string>

#include "../report.hpp"
#include "roofline.hpp"

namespace bench::roofline {

inline constexpr int json_schema_version = 1;

/// {"header": {...}, "rows": [...]}. The keys are listed in bench/README.md.
[[nodiscard]] std::string json_text(const environment& where, const settings& s, const results& r);

/// The limits, how near to them the products came, and the rows that miss a target.
[[nodiscard]] std::string table_text(const environment& where, const settings& s, const results& r);

}  // namespace bench::roofline
