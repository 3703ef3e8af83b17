// Quantize a model file: `09_convert IN OUT --format q4_k`. IN is a GGUF file, a safetensors file, a folder of safetensors
// shards or a packed file. OUT is a GGUF file if its name ends in .gguf; else a safetensors file, whose quantized matrices
// are in nibble's own layout (nibble/io/packed.hpp). Formats are the recipes of the library and f32, f16, bf16.
//
// Quantized are the matrices of floats whose names match: two dimensions, in a GGUF file also three (experts), and of
// columns that fill the blocks of a GGUF type. All else is copied. With --requantize matrices that are quantized already
// are decoded and quantized again. --importance FILE (of llama.cpp's imatrix) weighs the columns of the tensors it names.
//
// One tensor at a time is in memory, and OUT is the old file or the whole new one, whatever happens. The metadata of a GGUF
// file goes along; a safetensors file has none that would make its GGUF file a model for other programs.
//
// Exit code 0: all is well. 1: a file cannot be read, converted or written. 2: wrong arguments. 3: nothing matches, and
// nothing is written.
#include "model_file.hpp"

#include <nibble/io/imatrix.hpp>
#include <nibble/quantize.hpp>

#include <atomic>
#include <thread>

#if NIBBLE_HAS_MMAP
#include <sys/resource.h>
#include <unistd.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace {

using nibble::errc;
using nibble::index;
using nibble::status;
namespace ggml = nibble::io::ggml;

struct arguments {
    std::string in, out, format, importance;
    std::vector<std::string> include, exclude;
    bool json = false, requantize = false;
    int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
};

// * is any text, ? any character.
bool matches(std::string_view pattern, std::string_view text) {
    std::size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
    while (t < text.size()) {
        if (p < pattern.size() && pattern[p] == '*') {
            star = p++;
            resume = t;
        } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
            ++p;
            ++t;
        } else if (star != std::string_view::npos) {
            p = star + 1;
            t = ++resume;
        } else {
            return false;
        }
    }
    while (p < pattern.size() && pattern[p] == '*') ++p;
    return p == pattern.size();
}
bool matches_any(const std::vector<std::string>& patterns, const std::string& text) {
    return std::any_of(patterns.begin(), patterns.end(), [&](const std::string& p) { return matches(p, text); });
}

// What becomes of a tensor.
struct job {
    enum class kind { copy, matrix, quantize, floats };
    const model_tensor* t = nullptr;
    kind what = kind::copy;
    std::optional<nibble::qmatrix> ready;   // of a matrix that stays as it is, where it costs nothing to have
    const io::imatrix::entry* importance = nullptr;
    std::string to;                         // the type in OUT
    ggml::type block = ggml::type::f32;     // GGUF
    st::dtype dtype = st::dtype::f32;       // safetensors
    std::uint64_t bytes_out = 0;
};

std::optional<ggml::type> gguf_type(st::dtype d) {
    switch (d) {
        case st::dtype::f32: return ggml::type::f32;
        case st::dtype::f16: return ggml::type::f16;
        case st::dtype::bf16: return ggml::type::bf16;
        case st::dtype::f64: return ggml::type::f64;
        case st::dtype::i8: return ggml::type::i8;
        case st::dtype::i16: return ggml::type::i16;
        case st::dtype::i32: return ggml::type::i32;
        case st::dtype::i64: return ggml::type::i64;
        default: return std::nullopt;
    }
}
std::optional<st::dtype> plain_dtype(ggml::type t) {
    for (const auto d : {st::dtype::f32, st::dtype::f16, st::dtype::bf16, st::dtype::f64, st::dtype::i8, st::dtype::i16, st::dtype::i32, st::dtype::i64})
        if (gguf_type(d) == t) return d;
    return std::nullopt;
}

class converter {
public:
    converter(const arguments& a, const model_file& in) : a_(a), in_(in), gguf_(a.out.ends_with(".gguf")) {}

    status run(const io::imatrix::file* importance) {
        if (status s = choose_format(); !s) return s;
        for (const model_tensor& t : in_.tensors) {
            job j;
            j.t = &t;
            if (status s = plan(j, importance); !s) return {s.code(), "tensor " + io::detail::quoted(t.name) + " " + t.type + " [" + t.shape_text() + "]: " + s.message()};
            chosen_ += j.what == job::kind::quantize || j.what == job::kind::floats ? 1 : 0;
            total_ += t.bytes;
            jobs_.push_back(std::move(j));
        }
        if (chosen_ == 0) return {};
        return gguf_ ? write_gguf() : write_safetensors();
    }
    std::size_t chosen() const { return chosen_; }
    const std::vector<job>& jobs() const { return jobs_; }

private:
    status choose_format() {
        if (a_.format == "f32" || a_.format == "f16" || a_.format == "fp16" || a_.format == "bf16") {
            floats_ = a_.format == "f32" ? st::dtype::f32 : a_.format == "bf16" ? st::dtype::bf16 : st::dtype::f16;
            return {};
        }
        const nibble::recipe* r = nibble::find_recipe(a_.format);
        if (r == nullptr) {
            std::string all = "f32 f16 bf16";
            for (const nibble::recipe& each : nibble::recipes()) all.append(" ").append(each.name);
            return {errc::not_found, "no format " + io::detail::quoted(a_.format) + "; there are " + all};
        }
        recipe_ = r;
        if (!gguf_) return {};
        const auto sample = nibble::quantize(Eigen::MatrixXf::Zero(1, 256), nibble::make_plan(*r));
        const auto type = ggml::type_of(sample);
        if (!type) return {errc::unsupported, "GGUF has no type for " + a_.format + "; write a .safetensors file"};
        block_ = *type;
        return {};
    }

    bool is_float(const model_tensor& t) const {
        if (t.view()) return true;
        const auto* s = std::get_if<const st::tensor*>(&t.data);
        return s != nullptr && ((*s)->type == st::dtype::f8_e4m3 || (*s)->type == st::dtype::f8_e5m2);
    }
    bool is_quantized(const model_tensor& t) const {
        const auto* g = std::get_if<const io::gguf::tensor*>(&t.data);
        return std::holds_alternative<const nibble::qmatrix*>(t.data) || (g != nullptr && ggml::is_supported((*g)->type) && ggml::block_elements((*g)->type) > 1);
    }

    status plan(job& j, const io::imatrix::file* importance) {
        const model_tensor& t = *j.t;
        if (!t.sized) return {errc::unsupported, "the size of this type is not known"};
        const bool dimensions = t.shape.size() == 2 || (gguf_ && t.shape.size() == 3);
        const bool named = (a_.include.empty() || matches_any(a_.include, t.name)) && !matches_any(a_.exclude, t.name);
        const bool whole = recipe_ == nullptr || !gguf_ || t.cols() % static_cast<std::uint64_t>(ggml::block_elements(block_)) == 0;
        if (dimensions && named && whole && t.elements() != 0 && (is_float(t) || (a_.requantize && is_quantized(t)))) {
            j.what = recipe_ != nullptr ? job::kind::quantize : job::kind::floats;
            j.block = recipe_ != nullptr ? block_ : *gguf_type(floats_);
            j.dtype = floats_;
            j.to = gguf_ ? ggml::name(j.block) : recipe_ != nullptr ? recipe_->name : std::string(name_of(floats_));
            if (recipe_ != nullptr && importance != nullptr) j.importance = importance->find(t.name);
            return {};
        }
        return gguf_ ? plan_gguf_copy(j) : plan_safetensors_copy(j);
    }
    status plan_gguf_copy(job& j) {
        j.to = j.t->type;
        if (const auto* g = std::get_if<const io::gguf::tensor*>(&j.t->data)) {
            j.block = (*g)->type;
            return {};
        }
        if (const auto* m = std::get_if<const nibble::qmatrix*>(&j.t->data)) {
            const auto type = ggml::type_of(**m);
            if (!type || (*m)->cols() % ggml::block_elements(*type) != 0) return {errc::unsupported, "GGUF has no type for it; give --requantize"};
            j.what = job::kind::matrix;
            j.ready = **m;
            j.block = *type;
            j.to = ggml::name(*type);
            return {};
        }
        const auto type = gguf_type(std::get<const st::tensor*>(j.t->data)->type);
        if (!type) return {errc::unsupported, "GGUF has no type for its elements"};
        j.block = *type;
        return {};
    }
    status plan_safetensors_copy(job& j) {
        j.to = j.t->type;
        if (const auto* s = std::get_if<const st::tensor*>(&j.t->data)) {
            j.dtype = (*s)->type;
            return {};
        }
        j.what = job::kind::matrix;
        if (const auto* m = std::get_if<const nibble::qmatrix*>(&j.t->data)) {
            j.ready = **m;
            return {};
        }
        const auto& g = *std::get<const io::gguf::tensor*>(j.t->data);
        if (const auto d = plain_dtype(g.type)) {
            j.what = job::kind::copy;
            j.dtype = *d;
            return {};
        }
        if (!ggml::is_supported(g.type)) return {errc::unsupported, "its blocks are not decoded"};
        return {};
    }

    // --- writing ---------------------------------------------------------------------------------------------------

    nibble::result<nibble::qmatrix> quantize(const job& j, std::uint64_t first, std::uint64_t count) {
        const model_tensor& t = *j.t;
        const auto k = static_cast<index>(t.cols());
        nibble::quantize_options options;
        std::vector<float> importance, values;
        if (j.importance != nullptr) {
            const std::uint64_t rows_of_one = t.shape[t.shape.size() - 2];
            auto w = io::imatrix::weights(*j.importance, k, static_cast<index>(first / rows_of_one));
            if (!w) return w.failure();
            importance = std::move(w).value();
            options.importance = importance;
        }
        const auto threads = a_.threads;
        auto pool = nibble::make_executor(threads, [threads](index n, nibble::task_body body) {
            std::atomic<index> next{0};
            const auto work = [&] {
                for (index i = next++; i < n; i = next++) body(i);
            };
            std::vector<std::thread> helpers;
            for (int i = 1; i < threads && i < n; ++i) helpers.emplace_back(work);
            work();
            for (std::thread& h : helpers) h.join();
        });
        options.executor = &pool;
        nibble::const_view w;
        if (const auto view = t.view()) {
            w = *view;
            w.data = w.at(static_cast<index>(first), 0);
        } else {
            auto decoded = values_of(t, first, count);
            if (!decoded) return decoded.failure();
            values = std::move(decoded).value();
            w = nibble::row_major(values.data(), static_cast<index>(count), k);
        }
        w.rows = static_cast<index>(count);
        const nibble::quantize_plan plan = nibble::make_plan(*recipe_);
        if (const status s = nibble::check_quantize(w, plan, options); !s) return nibble::failure{s.code(), s.message(), 0};
        try {
            return nibble::quantize(w, plan, options);
        } catch (const nibble::error& e) {  // weights that are not finite
            return nibble::failure{e.code(), e.what(), 0};
        }
    }

    // The tensor as floats_, in pieces.
    template <class Write>
    status write_floats(const job& j, Write write) {
        return for_each_piece(in_, *j.t, [&](std::uint64_t first, const std::vector<float>& values) -> status {
            if (floats_ == st::dtype::f32) return write(std::as_bytes(std::span<const float>(values)));
            std::vector<std::uint16_t> half(values.size());
            for (std::size_t i = 0; i < half.size(); ++i) {
                half[i] = floats_ == st::dtype::f16 ? nibble::float_to_fp16(values[i]) : nibble::float_to_bf16(values[i]);
                const unsigned most = floats_ == st::dtype::f16 ? 0x7c00 : 0x7f80;
                if ((half[i] & 0x7fffu) == most && values[i] - values[i] == 0.0f)
                    return {errc::out_of_range, "element " + std::to_string(first * j.t->cols() + i) + " is " + std::to_string(values[i]) + ", beyond " + std::string(name_of(floats_))};
            }
            return write(std::as_bytes(std::span<const std::uint16_t>(half)));
        });
    }
    template <class Write>
    status write_copy(const job& j, Write write) {
        const auto* g = std::get_if<const io::gguf::tensor*>(&j.t->data);
        const auto bytes = g != nullptr ? (*g)->bytes : std::get<const st::tensor*>(j.t->data)->bytes;
        return write(bytes);
    }

    status write_gguf() {
        io::gguf::writer out;
        if (in_.gguf)
            for (const auto& e : in_.gguf->metadata())  // which says of what type most tensors were
                if (e.key != "general.file_type")
                    if (status s = out.set(e.key, e.value); !s) return s;
        for (job& j : jobs_) {
            auto shape = j.t->shape;
            if (shape.empty()) shape = {1};
            if (status s = out.add_tensor(j.t->name, j.block, shape); !s) return s;
            j.bytes_out = j.t->elements() / static_cast<std::uint64_t>(ggml::block_elements(j.block)) * static_cast<std::uint64_t>(ggml::block_bytes(j.block));
        }
        if (status s = out.create(a_.out); !s) return s;
        const auto write = [&](std::span<const std::byte> bytes) { return out.write(bytes); };
        for (const job& j : jobs_) {
            status s;
            progress(j);
            if (j.what == job::kind::copy) s = write_copy(j, write);
            else if (j.what == job::kind::floats) s = write_floats(j, write);
            else if (j.what == job::kind::matrix) s = out.write(*j.ready);
            else s = quantize_pieces(j, out);
            in_.release(*j.t);
            if (!s) return named(j, s);
        }
        return out.finish();
    }
    // GGUF's types look at one row at a time, so pieces give the same bytes. A piece is of one expert.
    status quantize_pieces(const job& j, io::gguf::writer& out) {
        const model_tensor& t = *j.t;
        const std::uint64_t rows_of_one = t.shape[t.shape.size() - 2];
        const std::uint64_t piece = std::max<std::uint64_t>(16, (std::uint64_t{1} << 22) / t.cols() / 16 * 16);
        for (std::uint64_t n = 0, count = 0; n < t.rows(); n += count) {
            count = std::min(piece, rows_of_one - n % rows_of_one);
            const auto m = quantize(j, n, count);
            if (!m) return {m.failure().code, m.failure().message};
            if (status s = out.write(m.value()); !s) return s;
        }
        return {};
    }

    status write_safetensors() {
        // Matrices first, then elements of many bits: all are aligned.
        const auto width = [](const job* j) { return j->what == job::kind::matrix || j->what == job::kind::quantize ? 1000u : bits_of(j->dtype); };
        std::vector<job*> order;
        for (job& j : jobs_) order.push_back(&j);
        std::stable_sort(order.begin(), order.end(), [&](const job* a, const job* b) { return width(a) > width(b); });
        if (!order.empty() && width(order[0]) == 1000) {
            io::packed::writer out;
            for (job* j : order)
                if (status s = add_matrix(*j, out); !s) return named(*j, s);
            return write_all(out, order);
        }
        st::writer out;
        return write_all(out, order);
    }
    status add_matrix(job& j, io::packed::writer& out) {
        const model_tensor& t = *j.t;
        const auto rows = static_cast<index>(t.rows()), cols = static_cast<index>(t.cols());
        if (j.what == job::kind::quantize) return out.add_matrix(t.name, rows, cols, *recipe_);
        if (j.what != job::kind::matrix) return {};
        if (j.ready) return out.add_matrix(t.name, *j.ready);
        // What a block type becomes is known from one row of it.
        const auto row = std::get<const io::gguf::tensor*>(t.data)->row_block(0, std::min<std::uint64_t>(1, t.rows()));
        const auto m = row ? row.value().matrix() : nibble::result<nibble::qmatrix>(row.failure());
        if (!m) return {m.failure().code, m.failure().message};
        return out.add_matrix(t.name, rows, cols, m.value());
    }
    template <class Writer>
    status write_all(Writer& out, const std::vector<job*>& order) {
        for (const auto& [key, text] : source_metadata())
            if (status s = out.set(key, text); !s) return s;
        for (job* j : order) {
            if (j->what != job::kind::copy && j->what != job::kind::floats) continue;
            if (status s = out.add_tensor(j->t->name, j->dtype, j->t->shape); !s) return s;
            j->bytes_out = j->t->elements() * bits_of(j->dtype) / 8;
        }
        if (status s = out.create(a_.out); !s) return s;
        const auto write = [&](std::span<const std::byte> bytes) { return out.write(bytes); };
        for (job* j : order) {
            status s;
            progress(*j);
            if (j->what == job::kind::copy) s = write_copy(*j, write);
            else if (j->what == job::kind::floats) s = write_floats(*j, write);
            else if constexpr (std::is_same_v<Writer, io::packed::writer>) s = write_matrix(*j, out);
            in_.release(*j->t);
            if (!s) return named(*j, s);
        }
        return out.finish();
    }
    status write_matrix(job& j, io::packed::writer& out) {
        if (!j.ready) {
            auto m = j.what == job::kind::quantize ? quantize(j, 0, j.t->rows()) : std::get<const io::gguf::tensor*>(j.t->data)->matrix();
            if (!m) return {m.failure().code, m.failure().message};
            j.ready = std::move(m).value();
        }
        j.bytes_out = j.ready->bytes();
        const status s = out.write(*j.ready);
        j.ready.reset();
        return s;
    }
    st::metadata_map source_metadata() const {
        if (in_.plain) return in_.plain->metadata();
        if (in_.packed) return in_.packed->metadata();
        st::metadata_map out;
        if (in_.gguf)
            for (const auto& e : in_.gguf->metadata())  // texts and numbers; vocabularies stay behind
                if (e.value.type() != io::gguf::value_type::array)
                    out.emplace(e.key, e.value.as_text() ? st::detail::json_text(std::string(*e.value.as_text())) ? std::string(*e.value.as_text()) : text_of(e.value) : text_of(e.value));
        return out;
    }

    status named(const job& j, const status& s) const { return {s.code(), "tensor " + io::detail::quoted(j.t->name) + ": " + s.message()}; }

    // A bar on a terminal, else a line a tensor.
    void progress(const job& j) {
        const double part = total_ == 0 ? 1.0 : static_cast<double>(done_) / static_cast<double>(total_);
        ++count_;
        done_ += j.t->bytes;
#if NIBBLE_HAS_MMAP
        if (::isatty(2) == 1) {
            const auto filled = static_cast<std::size_t>(30.0 * part);
            std::fprintf(stderr, "\r\x1b[K[%s%s] %3d%% %s", std::string(filled, '#').c_str(), std::string(30 - filled, ' ').c_str(), static_cast<int>(100.0 * part),
                         io::detail::printable(j.t->name, 40).c_str());
            if (count_ == jobs_.size()) std::fprintf(stderr, "\r\x1b[K");
            return;
        }
#endif
        std::fprintf(stderr, "%3d%% %s: %s%s%s\n", static_cast<int>(100.0 * part), shown(j.t->name).c_str(), j.t->type.c_str(), j.to == j.t->type ? "" : " -> ",
                     j.to == j.t->type ? "" : j.to.c_str());
    }

    const arguments& a_;
    const model_file& in_;
    bool gguf_;
    const nibble::recipe* recipe_ = nullptr;   // null: floats_
    ggml::type block_ = ggml::type::f32;
    st::dtype floats_ = st::dtype::f32;
    std::vector<job> jobs_;
    std::size_t chosen_ = 0, count_ = 0;
    std::uint64_t total_ = 0, done_ = 0;
};

void report(const converter& c, const arguments& a) {
    if (a.json) {
        auto all = nlohmann::ordered_json::array();
        for (const job& j : c.jobs())
            all.push_back({{"name", j.t->name}, {"from", j.t->type}, {"to", j.to}, {"shape", j.t->shape}, {"bytes_in", j.t->bytes}, {"bytes_out", j.bytes_out}});
        std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
        return;
    }
    std::uint64_t in = 0, out = 0, elements = 0;
    std::size_t weighted = 0;
    for (const job& j : c.jobs()) {
        in += j.t->bytes;
        out += j.bytes_out;
        elements += j.t->elements();
        weighted += j.importance != nullptr ? 1 : 0;
    }
    std::printf("%s: %zu tensors, %zu of them to %s", shown(a.out).c_str(), c.jobs().size(), c.chosen(), a.format.c_str());
    if (!a.importance.empty()) std::printf(" (%zu with importance)", weighted);
    std::printf(", %llu -> %llu bytes, %.4f bits per weight", static_cast<unsigned long long>(in), static_cast<unsigned long long>(out),
                elements == 0 ? 0.0 : 8.0 * static_cast<double>(out) / static_cast<double>(elements));
#if defined(__linux__)
    rusage used{};
    if (::getrusage(RUSAGE_SELF, &used) == 0) std::printf(", peak memory %ld MB", used.ru_maxrss / 1024);
#endif
    std::printf("\n");
}

int convert(const arguments& a) {
    const auto in = model_file::open(a.in);
    if (!in) return complain("convert", in.failure());
    io::imatrix::file importance;
    if (!a.importance.empty()) {
        auto read = io::imatrix::open(a.importance);
        if (!read) return complain("convert", read.failure());
        importance = std::move(read).value();
    }
    converter c(a, in.value());
    const status s = c.run(a.importance.empty() ? nullptr : &importance);
    if (!s) {
        std::fprintf(stderr, "convert: %s\n", s.message().c_str());
        return 1;
    }
    if (c.chosen() == 0) {
        std::fprintf(stderr, "convert: no tensor to convert: none of %zu is a matrix of floats with a matching name and size\n", c.jobs().size());
        return 3;
    }
    report(c, a);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    constexpr const char* usage =
        "usage: convert IN OUT --format NAME [--include PATTERN]... [--exclude PATTERN]... [--importance FILE]\n"
        "               [--requantize] [--threads N] [--json]\n"
        "Quantizes the matrices of a model file and copies all else.\n"
        "  IN             a GGUF or safetensors file, a folder of shards, or a packed file\n"
        "  OUT            NAME.gguf, or any other name for a safetensors file with packed matrices\n"
        "  --format       q4_k, nf4, mxfp4, ... (see docs/formats.md), or f32, f16, bf16\n"
        "  --include      only tensors whose name matches; * and ? stand for any text and any character\n"
        "  --exclude      not these\n"
        "  --importance   an imatrix file: importance of the columns, for formats that search\n"
        "  --requantize   also matrices that are quantized already\n"
        "  --json         a list of {name, from, to, shape, bytes_in, bytes_out}\n";
    arguments a;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        const auto value = [&](std::string& out) {
            if (i + 1 >= argc) return false;
            out = argv[++i];
            return !out.empty();
        };
        std::string text;
        bool good = true;
        if (argument == "--help") return std::fputs(usage, stdout) < 0 ? 1 : 0;
        if (argument == "--json") a.json = true;
        else if (argument == "--requantize") a.requantize = true;
        else if (argument == "--format") good = value(a.format);
        else if (argument == "--importance") good = value(a.importance);
        else if (argument == "--include" && (good = value(text))) a.include.push_back(text);
        else if (argument == "--exclude" && (good = value(text))) a.exclude.push_back(text);
        else if (argument == "--threads" && (good = value(text))) good = (a.threads = std::atoi(text.c_str())) >= 1 && a.threads <= 1024;
        else if (argument.starts_with("-")) good = false;
        else if (a.in.empty()) a.in = argument;
        else if (a.out.empty()) a.out = argument;
        else good = false;
        if (!good) return std::fputs(usage, stderr), 2;
    }
    if (a.in.empty() || a.out.empty() || a.format.empty()) return std::fputs(usage, stderr), 2;
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 1 << 20);  // set, it stays: what a tensor took goes back when it is written
#endif
    try {
        return convert(a);
    } catch (const nibble::error& e) {
        std::fprintf(stderr, "convert: %s\n", e.what());
        return 1;
    }
}
