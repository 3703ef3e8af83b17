// The tensor types of ggml, which GGUF files hold: blocks of bytes to a qmatrix and back, nothing rounded either way.
//
//     auto m = nibble::io::ggml::unpack(nibble::io::ggml::type::q4_k, bytes, rows, cols);   // result<qmatrix>
//     auto b = nibble::io::ggml::pack(m.value());                                           // result<vector<uint8_t>>
//
// A row is a run of whole blocks, ceil(cols / block_elements) of them; rows follow each other. ggml itself refuses rows
// that end inside a block. Here the last block of a row may be partial: unpack ignores what lies beyond the last
// column, and pack fills it with scales of zero and the code of zero (code 0 where there is a minimum).
//
// What is kept and what is not, so that pack(unpack(bytes)) == bytes:
//   all types   every bit, as long as rows end with their blocks; but
//   NVFP4       a scale byte of 7F means 0 in ggml, and NaN in E4M3: it is read as 0 and written as 0
//   TQ1_0       a byte of five trits that no quantizer writes has a canonical twin, which is what pack writes
//   Q8_1, Q8_K  ggml's activations: unpack reads them without their sums, and pack does not write them
// Refused: scales, minima and weights that are Inf or NaN (so does ggml's validate_row_data), MXFP4 exponent FF,
// NVFP4 scale bytes with a sign bit.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "../executor.hpp"
#include "ggml_block_reader.hpp"
#include "ggml_block_writer.hpp"

namespace nibble::inline NIBBLE_ABI::io::ggml {

namespace detail {

[[nodiscard]] inline nibble::failure bad(errc code, std::string text, std::uint64_t at = 0) {
    return {code, "ggml: " + std::move(text), at};
}
[[nodiscard]] inline std::string shape(index rows, index cols) { return nibble::detail::shape_text(rows, cols); }

}  // namespace detail

/// Bytes of one row of `cols` weights: whole blocks. -1 for a number that is no type of ggml's or a row too long.
[[nodiscard]] constexpr index row_bytes(type t, index cols) noexcept {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr || cols < 0 || cols > PTRDIFF_MAX / 1024) return -1;
    return (cols + b->elements - 1) / b->elements * b->bytes;
}

/// The matrix in `bytes`, rows x cols (ne[1] x ne[0] of GGUF), exactly. A failure names what was expected and the byte
/// of `bytes` at which it went wrong. threads: or none but the caller's.
[[nodiscard]] inline result<qmatrix> unpack(type t, std::span<const std::uint8_t> bytes, index rows, index cols, executor* threads = nullptr) {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr)
        return detail::bad(errc::unsupported,
                           "there is no tensor type " + std::to_string(static_cast<std::uint32_t>(t)));
    if (b->format == nullptr)
        return detail::bad(errc::unsupported,
                           std::string("a tensor of type ") + b->name + " cannot be a quantized matrix");
    const index row = row_bytes(t, cols);
    if (rows < 0 || row < 0) return detail::bad(errc::malformed, "a shape of " + detail::shape(rows, cols));
    const std::size_t size = bytes.size();
    const bool fits = row == 0 ? size == 0
                               : size % static_cast<std::size_t>(row) == 0 &&
                                     size / static_cast<std::size_t>(row) == static_cast<std::size_t>(rows);
    if (!fits)
        return detail::bad(errc::malformed,
                           "a " + detail::shape(rows, cols) + " matrix of type " + b->name + " takes " +
                               std::to_string(rows) + " rows of " + std::to_string(row) + " bytes, there are " +
                               std::to_string(size) + " bytes",
                           size);
    const bool wide = b->format->decode == decode_class::wide;
    const granularity group = wide ? granularity(per_channel{}) : granularity(per_group{b->group});
    qmatrix_builder out(rows, cols, format_handle(*b->format), b->scheme, b->offset, group, b->matrix_name, nibble::detail::initial_codes::unset);
    const index panels = out.layout().panels;
    const int concurrency = threads != nullptr ? threads->concurrency() : 1;
    const index tasks = (std::min)(panels, index{concurrency <= 1 ? 1 : concurrency * 4});  // none without rows, however long they are
    std::vector<detail::first_failure> failures(static_cast<std::size_t>(tasks));
    std::vector<std::uint8_t> failed(failures.size());
    const auto task = [&](index i) {
        detail::block_reader reader(*b, bytes, out);
        const auto at = static_cast<std::size_t>(i);
        failed[at] = reader.run(panels * i / tasks, panels * (i + 1) / tasks, failures[at]) ? 0 : 1;
    };
    if (tasks == 1) task(0);
    else if (tasks > 1) threads->parallel_for(tasks, task);
    for (std::size_t i = 0; i < failures.size(); ++i)  // tasks are in the order of rows
        if (failed[i] != 0) return detail::bad(errc::malformed, failures[i].text, failures[i].at);
    return std::move(out).finish();
}

/// The type whose blocks can hold the matrix exactly, by its code format, scale scheme, offset and groups. A scale that
/// serves several blocks is repeated, so int4 with fp16 scales in groups of 128 is Q4_0, too. Of ternary types the one
/// that takes fewer bytes: TQ2_0, but Q2_0 for groups of 64 and for rows of at most 192; TQ1_0 only when asked for.
[[nodiscard]] inline std::optional<type> type_of(const qmatrix& m) noexcept {
    const detail::block_type* best = nullptr;
    for (const detail::block_type& t : detail::table::types) {
        if (t.id == type::tq1_0 || !detail::holds(t, m)) continue;
        if (best == nullptr || row_bytes(t.id, m.cols()) < row_bytes(best->id, m.cols())) best = &t;
    }
    return best != nullptr ? std::optional<type>(best->id) : std::nullopt;
}

/// The bytes of the matrix as tensor type t. Fails if that type cannot hold it exactly.
[[nodiscard]] inline result<std::vector<std::uint8_t>> pack(const qmatrix& m, type t) {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr || !detail::holds(*b, m))
        return detail::bad(errc::unsupported, std::string("type ") + name(t) + " does not hold " + m.name() + ": " +
                                                  m.format().name + " codes, " + name_of(m.scheme().storage) +
                                                  " scales, offset " + name_of(m.offset_type()) + ", groups of " +
                                                  std::to_string(m.group_size()));
    const index row = row_bytes(t, m.cols());
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(nibble::detail::checked_product(m.rows(), row)));
    if (m.rows() == 0) return bytes;
    std::uint8_t* at = bytes.data();
    detail::panel_of_codes codes(m.layout(), *b);
    detail::panel_of_scales scales(m.layout());
    detail::block block;
    for (index n = 0; n < m.rows(); ++n) {
        if (b->format->decode == decode_class::wide) {
            for (index k = 0; k < m.cols(); ++k, at += 2) detail::store_u16(at, static_cast<std::uint16_t>(m.code(n, k)));
            continue;
        }
        if (n % panel_rows == 0) {
            detail::take_codes(m, n / panel_rows, codes);
            scales.load(m.scales_of(n / panel_rows));
        }
        for (index first = 0; first < m.cols(); first += b->elements, at += b->bytes) {
            block.code = codes.row(n) + first;
            detail::take_block(*b, m, scales, n, first, block);
            if (t == type::tq1_0)
                for (index i = 0; i < b->elements; ++i)
                    if (block.code[i] > 2)
                        return detail::bad(errc::unsupported,
                                           "TQ1_0 has no code 3, row " + std::to_string(n) + " has; use TQ2_0",
                                           static_cast<std::uint64_t>(at - bytes.data()));
            detail::write_block(*b, block, at);
        }
    }
    return bytes;
}

/// The bytes of the matrix as the tensor type of type_of().
[[nodiscard]] inline result<std::vector<std::uint8_t>> pack(const qmatrix& m) {
    if (const std::optional<type> t = type_of(m)) return pack(m, *t);
    return detail::bad(errc::unsupported, "no tensor type holds " + m.name() + ": " + m.format().name + " codes, " +
                                              name_of(m.scheme().storage) + " scales, offset " +
                                              name_of(m.offset_type()) + ", groups of " +
                                              std::to_string(m.group_size()));
}

}  // namespace nibble::io::ggml
