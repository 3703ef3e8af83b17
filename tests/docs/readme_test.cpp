// The README's program is examples/01_quickstart.cpp, to the letter, and the table of formats agrees with the recipes.
#include <fstream>
#include <sstream>
#include <string>

#include <nibble/nibble.hpp>

#include "support/catch.hpp"

namespace {

std::string text_of(const std::string& path) {
    std::ifstream file(path);
    REQUIRE(file.good());
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

std::string between(const std::string& text, const std::string& first, const std::string& last) {
    const std::size_t begin = text.find(first);
    REQUIRE(begin != std::string::npos);
    const std::size_t end = text.find(last, begin + first.size());
    REQUIRE(end != std::string::npos);
    return text.substr(begin + first.size(), end - begin - first.size());
}

}  // namespace

TEST_CASE("the README's program is the first example") {
    const std::string source = text_of(NIBBLE_SOURCE_DIR "/examples/01_quickstart.cpp");
    const std::string without_comment = source.substr(source.find('\n') + 1);
    CHECK(between(text_of(NIBBLE_SOURCE_DIR "/README.md"), "```cpp\n", "```") == without_comment);
}

TEST_CASE("the README's table names recipes that exist, with their use") {
    std::istringstream lines(between(text_of(NIBBLE_SOURCE_DIR "/README.md"), "|---|---|---|---|---|\n", "\n\n"));
    std::string line;
    int rows = 0;
    while (std::getline(lines, line)) {
        CAPTURE(line);
        const std::string name = between(line, "| `", "`");
        const nibble::recipe* r = nibble::find_recipe(name);
        REQUIRE(r != nullptr);
        CHECK(line.find(std::string("| ") + r->use_when + " |") != std::string::npos);
        ++rows;
    }
    CHECK(rows == 21);
}
