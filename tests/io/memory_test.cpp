// Memory that runs out at any allocation, for layers of every layout and importance matrices: a failure or
// std::bad_alloc, no leak, no partial file. And products of act-order layers, which allocate nothing with a workspace.
#include "support/failing_allocations.hpp"

#include "nibble/io/checkpoint.hpp"
#include "nibble/io/imatrix.hpp"

#include "support/catch.hpp"
#include "support/scratch.hpp"

namespace {

namespace fs = std::filesystem;
namespace io = nibble::io;

[[nodiscard]] fs::path golden() { return fs::path(NIBBLE_TEST_DATA_DIR) / "checkpoints"; }

/// Calls `use` with 0, 1, 2, ... allocations that succeed until it returns true; each call leaves no memory
/// behind. Returns how many it takes.
template <class Use, class Check>
long until_it_succeeds(Use use, Check check) {
    REQUIRE(use());  // what is allocated once and for all
    bool done = false;
    long n = 0;
    for (; !done; ++n) {
        const long live = failing_allocations::live;
        try {
            const failing_allocations::limit limit(n);
            done = use();
        } catch (const std::bad_alloc&) {
            done = false;
        }
        if (failing_allocations::live != live) FAIL("a leak after " << n << " allocations");
        if (!done) check();
        REQUIRE(n < 10'000);
    }
    return n;
}

}  // namespace

// What reads JSON is left out: nlohmann-json's destructor allocates, and ends the program where it cannot.
TEST_CASE("layers of every layout", "[io][memory]") {
    for (const auto& entry : fs::directory_iterator(golden())) {
        const std::string name = entry.path().filename().string();
        if (!entry.is_directory() || name.starts_with("bnb_nf4") || name.starts_with("bnb_fp4")) continue;
        INFO(name);
        const auto model = io::open_checkpoint(entry.path());
        for (std::size_t i = 0; i < model.value().layers().size(); ++i)
            CHECK(until_it_succeeds([&] { return model.value().load(i).has_value(); }, [] {}) > 1);
    }
}

TEST_CASE("importance matrices", "[io][memory]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "file";
    io::imatrix::file f;
    f.entries = {{"a", {1, 2, 3, 4}, {2}}, {"a name that is not short", {5, 6}, {3}}};
    f.datasets = {"the data"};
    f.chunks = 2;
    f.chunk_size = 512;
    for (const auto form : {&io::imatrix::write, &io::imatrix::write_legacy}) {
        const auto write = [&] { return static_cast<bool>(form(path, f)); };
        REQUIRE(write());
        const std::string whole = slurp(path);
        CHECK(until_it_succeeds(write, [&] {
                  if (dir.names().size() != 1 || slurp(path) != whole) FAIL("a partial file");
              }) > 5);
        CHECK(until_it_succeeds([&] { return io::imatrix::open(path).has_value(); }, [] {}) > 5);
    }
}

TEST_CASE("products of act-order layers in a workspace allocate nothing", "[io][memory]") {
    const auto model = io::open_checkpoint(golden() / "gptq_4bit_g32_asym_actorder");
    const io::linear layer = model.value().load(0).value();
    REQUIRE_FALSE(layer.permutation.empty());
    for (const nibble::index m : {1, 5, 33}) {
        Eigen::MatrixXf x(layer.weight.cols(), m);
        for (nibble::index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i * 31 % 17) - 8;
        x(3, 0) = 1e30f;  // a column that goes to strict_f32
        Eigen::MatrixXf y(layer.weight.rows(), m), again = y;
        const Eigen::MatrixXf right = io::multiply(layer, x);
        nibble::workspace scratch;
        const auto product = [&](Eigen::MatrixXf& to) {
            io::gemm(layer, nibble::eigen_view<Eigen::MatrixXf>(x).get(), nibble::output_of(to), {.workspace = &scratch});
        };
        product(y);
        {
            const failing_allocations::limit none(0);
            product(again);
        }
        CHECK(y == right);
        CHECK(again == right);
        CHECK(right.col(0).allFinite());
        const Eigen::MatrixXf slow = io::dequantize(layer) * x;
        CHECK((right - slow).norm() < 1e-4f * slow.norm());
    }
}
