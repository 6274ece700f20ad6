// Calls of the library with their buffers: what the native tests share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "idsel/select.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Rule {
    int32_t id;
    std::vector<double> params;
};

[[maybe_unused]] std::vector<Rule> greedy_rules(int64_t n) {
    return {{0, {20, 0, 0}},
            {0, {5, -INFINITY, 0}},
            {0, {20, 0.4, 0}},
            {0, {20, -0.2, 0}},
            {0, {20, 0.1, 1}},
            {1, {0.5, 1}},
            {1, {0.3, 3}},
            {2, {-1, 0}},
            {2, {0, 0}},
            {2, {1e9, 0}},
            {2, {-1, 1}},
            {2, {0, 1}},
            {3, {0.8, 0, 0, 0}},
            {3, {0.2, 1, static_cast<double>(n), 2}},
            {4, {1e-6}},
            {4, {0}},
            {5, {1, 0}},
            {5, {0.5, 1}},
            {6, {}},
            {7, {}}};
}

// With those that decide on all picks at once, which have no kernel.
[[maybe_unused]] std::vector<Rule> rules(int64_t n) {
    std::vector<Rule> all = greedy_rules(n);
    all.insert(all.end(), {{8, {0.5, 0}}, {8, {0.5, 1}}, {9, {4, 0}}, {9, {0, 2}}, {9, {7, 1e9}}});
    return all;
}

// A call and the buffers behind it, each of exactly its size, so that a read beyond one is an error to a sanitizer.
struct Call {
    std::vector<float> features32;
    std::vector<uint16_t> features16;
    std::vector<float> importance;
    std::vector<uint8_t> mask;
    std::vector<int32_t> offsets;
    std::vector<int32_t> grids;
    std::vector<int32_t> given;  // of all samples, as many of each
    std::vector<int64_t> k;
    std::vector<double> params;
    std::vector<int64_t> indices;
    std::vector<float> scores;
    std::vector<idsel_stats> stats;
    idsel_args args{};
};

void point(Call& call) {
    idsel_args& a = call.args;
    a.features = a.dtype == IDSEL_FLOAT32 ? static_cast<const void*>(call.features32.data()) : call.features16.data();
    a.importance = call.importance.empty() ? nullptr : call.importance.data();
    a.mask = call.mask.empty() ? nullptr : call.mask.data();
    a.cu_seqlens = call.offsets.empty() ? nullptr : call.offsets.data();
    a.grids = call.grids.empty() ? nullptr : call.grids.data();
    a.given = call.given.empty() ? nullptr : call.given.data();
    a.given_count = a.batch == 0 ? 0 : static_cast<int64_t>(call.given.size()) / a.batch;
    a.k = call.k.data();
    a.params = call.params.data();
    a.param_count = static_cast<int64_t>(call.params.size());
    call.indices.assign(static_cast<size_t>(a.batch * a.k_max), -7);
    call.scores.assign(static_cast<size_t>(a.batch * a.k_max), kNaN);
    call.stats.assign(static_cast<size_t>(a.batch), {});
    a.indices = call.indices.data();
    a.scores = call.scores.data();
    a.stats = call.stats.data();
}

Call make_call(uint64_t seed, int64_t batch, int64_t n, int64_t dim, int64_t k, int32_t dtype, bool hurt) {
    Random random(seed);
    Call call;
    idsel_args& a = call.args;
    a.abi = IDSEL_ABI;
    a.dtype = dtype;
    a.batch = batch;
    a.tokens = n;
    a.dim = dim;
    a.features_batch_stride = n * dim;
    a.features_token_stride = dim;
    a.features_dim_stride = 1;
    a.importance_batch_stride = a.mask_batch_stride = n;
    a.importance_token_stride = a.mask_token_stride = 1;
    a.k_count = 1;
    a.k_max = k;
    a.threads = 1;
    call.k = {k};
    std::vector<float> values(static_cast<size_t>(batch * n * dim));
    for (float& value : values) value = random.normal();
    for (int64_t row = 1; row < batch * n; ++row) {  // some rows like the one before, some equal to it
        const int64_t kind = random.below(4);
        for (int64_t d = 0; kind < 2 && d < dim; ++d) {
            const float before = values[static_cast<size_t>((row - 1) * dim + d)];
            float& value = values[static_cast<size_t>(row * dim + d)];
            value = kind == 0 ? before : before + 0.3f * value;
        }
    }
    for (int64_t i = 0; i < batch * n; ++i) call.importance.push_back(static_cast<float>(random.below(1000)) / 1000.0f);
    if (hurt && batch > 0 && n > 4) {
        for (int64_t d = 0; d < dim; ++d) values[static_cast<size_t>(2 * dim + d)] = 0;
        values[static_cast<size_t>(3 * dim)] = kNaN;
        call.importance[0] = kNaN;
        call.importance[1] = -kInf;
        call.importance[4] = kInf;
        for (int64_t i = 0; i < batch * n; ++i) call.mask.push_back(random.below(5) != 0);
    }
    if (dtype == IDSEL_FLOAT32) {
        call.features32 = values;
    } else {
        for (float value : values) call.features16.push_back(dtype == IDSEL_BFLOAT16 ? to_bfloat16(value) : 0);
        for (size_t i = 0; dtype == IDSEL_FLOAT16 && i < values.size(); ++i) {
            call.features16[i] = static_cast<uint16_t>((random.bits() & 0x83ff) | 12u << 10);
        }
    }
    return call;
}

// On a CUDA device: what stands in for it, with a workspace of exactly its size.
void run(Call& call) {
    point(call);
    std::vector<unsigned char> counters;
    std::unique_ptr<unsigned char[]> workspace;
    if (call.args.device == IDSEL_CUDA) {
        call.args.workspace_bytes = idsel_workspace_bytes(&call.args);
        CHECK(call.args.workspace_bytes >= 0);
        workspace.reset(new unsigned char[static_cast<size_t>(call.args.workspace_bytes)]);
        std::memset(workspace.get(), 0xff, static_cast<size_t>(call.args.workspace_bytes));
        counters.resize(IDSEL_COUNTERS_BYTES);
        call.args.workspace = workspace.get();
        call.args.counters = counters.data();
    }
    const idsel_status status = idsel_select(&call.args);
    if (status != IDSEL_OK) std::fprintf(stderr, "%s\n", idsel_last_error());
    CHECK(status == IDSEL_OK);
    CHECK(std::count(counters.begin(), counters.end(), 0) == static_cast<int64_t>(counters.size()));
}

// Long features around a shared offset, all equally important: most tokens have to be looked at for every pick.
[[maybe_unused]] Call make_long_call() {
    const int64_t n = 400, dim = 4096;
    Call call = make_call(13, 1, n, dim, 60, IDSEL_FLOAT32, false);
    Random random(14);
    std::vector<float> offset(static_cast<size_t>(dim));
    for (float& value : offset) value = 0.6f * random.normal();
    for (size_t at = 0; at < call.features32.size(); ++at) {
        call.features32[at] = random.normal() + offset[at % static_cast<size_t>(dim)];
    }
    call.importance.assign(static_cast<size_t>(n), 1.0f);
    return call;
}

// No token twice, none masked, padding at the end only, scores finite or -inf or the +inf of a start.
[[maybe_unused]] void check_picks(const Call& call) {
    const idsel_args& a = call.args;
    for (int64_t b = 0; b < a.batch; ++b) {
        const int64_t n = call.offsets.empty() ? a.tokens : a.cu_seqlens[b + 1] - a.cu_seqlens[b];
        const int64_t first = call.offsets.empty() ? b * a.tokens : a.cu_seqlens[b];
        // DART's text is no token.
        const int64_t tokens = a.rule == 9 ? std::max<int64_t>(0, n - static_cast<int64_t>(call.params[1])) : n;
        int64_t selectable = tokens;
        if (a.mask != nullptr) selectable = std::count(a.mask + first, a.mask + first + tokens, 1);
        const int64_t wanted = std::min(selectable, call.k[call.k.size() == 1 ? 0 : static_cast<size_t>(b)]);
        std::vector<uint8_t> taken(static_cast<size_t>(n));
        for (int64_t step = 0; step < a.k_max; ++step) {
            const int64_t token = a.indices[b * a.k_max + step];
            if (step >= wanted) {
                CHECK(token == -1 && a.scores[b * a.k_max + step] == -kInf);
                continue;
            }
            CHECK(token >= 0 && token < tokens && !taken[static_cast<size_t>(token)]);
            CHECK(a.mask == nullptr || a.mask[first + token] == 1);
            CHECK(!std::isnan(a.scores[b * a.k_max + step]));
            taken[static_cast<size_t>(token)] = 1;
        }
    }
}

[[maybe_unused]] bool same(const Call& a, const Call& b) {
    return a.indices == b.indices &&
           (a.scores.empty() || std::memcmp(a.scores.data(), b.scores.data(), a.scores.size() * sizeof(float)) == 0);
}

}  // namespace
