// The part of a user's program that reads files: it needs nlohmann-json.
#include <nibble/io/safetensors.hpp>
