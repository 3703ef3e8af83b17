// nibble::compiled: the entry points of the library, instantiated once. Users of the target get the same headers with
// NIBBLE_COMPILED defined, which then declare what is defined here.
#define NIBBLE_COMPILED_HERE
#include <nibble/nibble.hpp>
