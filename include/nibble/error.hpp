// What happens when something is wrong.
//
//   a caller's mistake (shapes, options, non-finite weights)   throws nibble::error
//   a file's mistake (nibble/io)                               comes back in result<T>, with a byte offset
//   either, under -fno-exceptions                              calls the handler of set_error_handler
//
// Messages hold the values that disagree: "gemm: W is 4096x4096, X is 4000x8". The library never prints.
#pragma once

#include <atomic>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "config.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The kind of an error, for programs; the message is for people.
enum class errc {
    ok = 0,
    shape_mismatch,    ///< two shapes that must agree do not
    invalid_argument,  ///< a value outside what the function accepts
    non_finite,        ///< NaN or Inf where a finite number is needed
    out_of_range,      ///< a number that does not fit its stored type, or an index past the end
    unsupported,       ///< a combination that does not exist; the message says what does
    overlap,           ///< an output that shares memory with an input
    not_found,         ///< a name that is not known
    malformed,         ///< a file that breaks its format's rules
    io,                ///< the operating system refused to open, read or write
    cancelled,         ///< a progress callback asked to stop
};

/// Thrown for every caller's mistake.
class error : public std::runtime_error {
public:
    error(errc code, const std::string& message) : std::runtime_error(message), code_(code) {}
    [[nodiscard]] errc code() const noexcept { return code_; }

private:
    errc code_;
};

/// Called with the code and the message in place of a throw when exceptions are off. It must not return.
using error_handler = void (*)(errc code, const char* message);

namespace detail {

[[noreturn]] inline void terminate_handler(errc, const char*) { std::terminate(); }

inline std::atomic<error_handler>& handler_slot() noexcept {
    static std::atomic<error_handler> slot{&terminate_handler};
    return slot;
}

[[noreturn]] NIBBLE_NOINLINE inline void fail(errc code, const std::string& message) {
#if NIBBLE_HAS_EXCEPTIONS
    throw error(code, message);
#else
    handler_slot().load()(code, message.c_str());
    std::terminate();  // a handler that returns has nowhere to return to
#endif
}

}  // namespace detail

/// Sets what a build without exceptions does on a caller's mistake (default: std::terminate) and returns the handler
/// that was set before. Builds with exceptions never call it.
inline error_handler set_error_handler(error_handler handler) noexcept {
    return detail::handler_slot().exchange(handler != nullptr ? handler : &detail::terminate_handler);
}

/// The outcome of a check: true when all is well, else what is wrong. Every verb has its check (check_gemm, ...), so a
/// program without exceptions can ask first.
class [[nodiscard]] status {
public:
    status() noexcept = default;
    status(errc code, std::string message) : code_(code), message_(std::move(message)) {}

    [[nodiscard]] explicit operator bool() const noexcept { return code_ == errc::ok; }
    [[nodiscard]] errc code() const noexcept { return code_; }
    [[nodiscard]] const std::string& message() const noexcept { return message_; }

    /// Throws nibble::error (or calls the handler) unless all is well.
    void or_throw() const {
        if (code_ != errc::ok) detail::fail(code_, message_);
    }

private:
    errc code_ = errc::ok;
    std::string message_;
};

/// What a reader says of a bad file.
struct failure {
    errc code = errc::malformed;
    std::string message;       ///< what was expected and what was found
    std::uint64_t offset = 0;  ///< the byte of the file at which the reader gave up
};

/// A value, or why there is none. Files return it: test it, or let value() throw.
template <class T>
class [[nodiscard]] result {
public:
    result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
    result(nibble::failure why) : state_(std::in_place_index<1>, std::move(why)) {}

    [[nodiscard]] explicit operator bool() const noexcept { return state_.index() == 0; }
    [[nodiscard]] bool has_value() const noexcept { return state_.index() == 0; }

    /// The value; throws nibble::error with the failure's message and offset when there is none.
    [[nodiscard]] T& value() & {
        require();
        return *std::get_if<0>(&state_);
    }
    [[nodiscard]] const T& value() const& {
        require();
        return *std::get_if<0>(&state_);
    }
    [[nodiscard]] T&& value() && {
        require();
        return std::move(*std::get_if<0>(&state_));
    }

    /// Why there is no value. Only valid when there is none.
    [[nodiscard]] const nibble::failure& failure() const { return *std::get_if<1>(&state_); }

private:
    void require() const {
        if (const auto* why = std::get_if<1>(&state_))
            detail::fail(why->code, why->message + " (at byte " + std::to_string(why->offset) + ")");
    }

    std::variant<T, nibble::failure> state_;
};

/// What to do with NaN and Inf in weights.
enum class non_finite {
    error,     ///< refuse, naming the element (the default)
    saturate,  ///< NaN becomes 0, +-Inf the largest finite magnitude of the tensor
};

}  // namespace nibble
