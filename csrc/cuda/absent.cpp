// Stands for the CUDA engine in a build without it.
#include "common/fail.h"
#include "cuda/select_cuda.h"

namespace idsel::cuda {
namespace {

idsel_status absent() { return fail(IDSEL_UNSUPPORTED, "the compiled library was built without CUDA"); }

}  // namespace

idsel_status status(int32_t) { return absent(); }

idsel_status plan(const idsel_args&, idsel_plan*) { return absent(); }

idsel_status select(const idsel_args&) { return absent(); }

}  // namespace idsel::cuda
