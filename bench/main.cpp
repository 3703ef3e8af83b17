// nibble_bench: which format shall I take? Compares them on real weights and activations; ./bench/run builds and runs
// it. `nibble_bench roofline`: how near do the kernels come to what this CPU can do?
// `nibble_bench io`: what do files cost? `nibble_bench algorithms`: what does calibration gain?
//
// Exit codes: 0 all is well; 1 an option, a file or the disk is wrong; 2 a product disagrees with the reference;
// 130 Ctrl-C.

#include <cstdio>
#include <exception>
#include <memory>
#include <new>

#include <CLI/CLI.hpp>

#include "algorithms/algorithms_benchmark.hpp"
#include "io/io_benchmark.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "report.hpp"
#include "roofline/roofline_options.hpp"
#include "roofline/roofline_report.hpp"

namespace {

constexpr int bad_input_code = 1;
constexpr int wrong_code = 2;
constexpr int interrupted_code = 130;

int run(const bench::command_line& line) {
    if (line.list) {
        bench::print(bench::list_text());
        return 0;
    }
    const bench::settings s = bench::check_settings(line);
    // Before the long work: files that cannot be read or written are reported now.
    const bench::dataset data =
        line.input.file.empty()
            ? bench::load_directory(NIBBLE_BENCH_DATA_DIR, "layer 3 of all-MiniLM-L6-v2 (bench/data)")
            : bench::load_file(line.input);
    std::unique_ptr<bench::output_file> json, csv;
    if (line.json) json = std::make_unique<bench::output_file>(line.json_file);
    if (!line.csv_file.empty()) csv = std::make_unique<bench::output_file>(line.csv_file);

    bench::catch_interrupts();
    bench::progress shown;
    const bench::results measured = bench::compare_formats(data, s, shown);
    shown.clear();

    const bench::environment where = bench::describe_environment();
    const bench::report report{where, data, s, measured};
    if (json) json->commit(bench::json_text(report));
    if (csv) csv->commit(bench::csv_text(report));
    bench::print(line.csv && !csv ? bench::csv_text(report) : bench::table_text(report));
    if (measured.any_wrong()) return wrong_code;
    return measured.complete ? 0 : interrupted_code;
}

int run_roofline(const bench::roofline::command_line& line) {
    bench::roofline::settings s = bench::roofline::check_settings(line);
#if defined(NIBBLE_BENCH_NATIVE_EIGEN)
    if (!line.no_native) s.native_program = NIBBLE_BENCH_NATIVE_EIGEN;
#endif
    std::unique_ptr<bench::output_file> json;
    if (line.json) json = std::make_unique<bench::output_file>(line.json_file);

    bench::catch_interrupts();
    bench::progress shown;
    const bench::roofline::results measured = bench::roofline::measure(s, shown);
    shown.clear();

    const bench::environment where = bench::describe_environment();
    if (json) json->commit(bench::roofline::json_text(where, s, measured));
    bench::print(bench::roofline::table_text(where, s, measured));
    if (measured.any_wrong()) return wrong_code;
    return measured.complete ? 0 : interrupted_code;
}

int run_io(const bench::io::command_line& line) {
    const bench::io::settings s = bench::io::check_settings(line);
    std::unique_ptr<bench::output_file> json;
    if (line.json) json = std::make_unique<bench::output_file>(line.json_file);

    bench::catch_interrupts();
    bench::progress shown;
    const bench::io::results measured = bench::io::measure(s, shown);
    shown.clear();

    const bench::environment where = bench::describe_environment();
    if (json) json->commit(bench::io::json_text(where, s, measured));
    bench::print(bench::io::table_text(where, s, measured));
    if (measured.any_wrong()) return wrong_code;
    return measured.complete ? 0 : interrupted_code;
}

int run_algorithms(const bench::algorithms::command_line& line) {
    const bench::algorithms::settings s = bench::algorithms::check_settings(line);
    std::unique_ptr<bench::output_file> json;
    if (line.json) json = std::make_unique<bench::output_file>(line.json_file);

    bench::catch_interrupts();
    bench::progress shown;
    const bench::algorithms::results measured = bench::algorithms::measure(NIBBLE_BENCH_DATA_DIR, s, shown);
    shown.clear();

    const bench::environment where = bench::describe_environment();
    if (json) json->commit(bench::algorithms::json_text(where, s, measured));
    bench::print(bench::algorithms::table_text(where, measured));
    return measured.complete ? 0 : interrupted_code;
}

int complain(const char* what) {
    std::fprintf(stderr, "nibble_bench: %s\n", what);
    return bad_input_code;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        CLI::App app;
        bench::command_line line;
        bench::describe_options(app, line);
        bench::roofline::command_line roofline_line;
        CLI::App* const roofline = app.add_subcommand("roofline");
        bench::roofline::describe_options(*roofline, roofline_line);
        bench::io::command_line io_line;
        CLI::App* const io = app.add_subcommand("io");
        bench::io::describe_options(*io, io_line);
        bench::algorithms::command_line algorithms_line;
        CLI::App* const algorithms = app.add_subcommand("algorithms");
        bench::algorithms::describe_options(*algorithms, algorithms_line);
        app.require_subcommand(0, 1);
        try {
            app.parse(argc, argv);
            for (const CLI::App* chosen : app.get_subcommands())
                for (const CLI::Option* o : app.get_options())
                    if (o->count() != 0)
                        throw CLI::ExtrasError({o->get_name() + " before " + chosen->get_name() + " belongs to the comparison"});
        } catch (const CLI::CallForHelp&) {
            bench::print(app.help());
            return 0;
        } catch (const CLI::ParseError& e) {
            return complain((std::string(e.what()) + " (--help lists the options)").c_str());
        }
        if (io->parsed()) return run_io(io_line);
        if (algorithms->parsed()) return run_algorithms(algorithms_line);
        return roofline->parsed() ? run_roofline(roofline_line) : run(line);
    } catch (const bench::interrupted& e) {
        complain(e.what());
        return interrupted_code;
    } catch (const std::bad_alloc&) {
        return complain("out of memory; compare fewer formats with --format, or a smaller --shape");
    } catch (const std::exception& e) {
        return complain(e.what());
    } catch (...) {
        return complain("unknown error");
    }
}
