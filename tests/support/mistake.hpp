// What a call threw, for tests of errors.
#pragma once

#include <string>

#include <nibble/error.hpp>

struct mistake {
    nibble::errc code = nibble::errc::ok;
    std::string message;
};

/// The error that `call` threw; errc::ok if it did not.
template <class Call>
mistake of(Call call) {
    try {
        call();
    } catch (const nibble::error& e) {
        return {e.code(), e.what()};
    }
    return {};
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
