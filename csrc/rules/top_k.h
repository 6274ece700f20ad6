// Importance alone: FastV (arXiv 2403.06764), FasterVLM (arXiv 2412.01818).
#pragma once

#include "common/host_device.h"

namespace idsel {

struct TopK {
    static constexpr int kId = 6;
    static constexpr const char* kName = "TopK";
    static constexpr int kParamCount = 0;
    static constexpr const char* const* kParams = nullptr;
    static constexpr const char* kState = "token";

    static TopK from_params(const double*) { return {}; }

    IDSEL_HD float start(float importance) const { return importance; }
    IDSEL_HD float untouched(float importance) const { return importance; }
    IDSEL_HD float absorb(float state, float /*c*/, float /*pick_priority*/) const { return state; }
    IDSEL_HD float priority(float state, float /*importance*/) const { return state; }
    IDSEL_HD bool settled(float /*state*/) const { return true; }
    IDSEL_HD bool inert(float /*pick_priority*/) const { return true; }
    IDSEL_HD bool raises(float /*pick_priority*/) const { return false; }
    IDSEL_HD long long visible(long long picks) const { return picks; }
};

}  // namespace idsel
