#include "emulator.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"

namespace idsel::emulator {
namespace {

constexpr size_t kExchangeBytes = 32;

enum class Wait { kNothing, kOthers, kBarrier, kExchange, kEnded };

struct Block;

struct Thread {
    Fiber fiber;
    Block* block = nullptr;
    int index = 0;
    Wait wait = Wait::kNothing;
    int line = 0;
    int exchanges = 0;
    int64_t cluster_arrivals = 0;
};

struct Warp {
    alignas(8) unsigned char slots[2][kLanes * kExchangeBytes];
    int arrived = 0;
};

// Blocks that run together, and may reach one another's shared memory.
struct Cluster {
    std::vector<Block*> blocks;
    int64_t arrivals = 0;  // of threads
};

struct Block {
    int64_t index = 0;
    std::shared_ptr<Cluster> cluster;
    bool begun = false;
    std::unique_ptr<unsigned char[]> shared;
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Warp> warps;
    std::vector<int> order;  // in which the threads take turns
    int at_barrier = 0;
    int ended = 0;
    bool in_vain = false;  // has looked for what it waits for since any block did anything else
};

struct Grid {
    const std::function<void()>* body;
    int64_t size;
    int shared_bytes;
    int cluster;
    size_t at_once;  // clusters
    int64_t late;    // a block that begins last; -1: none
    std::mt19937_64 random;
};

thread_local Grid* grid = nullptr;
thread_local Thread* running = nullptr;

uint64_t seed_of_launch() {
    if (const char* given = std::getenv("IDSEL_EMULATOR_SEED")) return std::strtoull(given, nullptr, 10);
    return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

size_t clusters_at_once() {
    const char* given = std::getenv("IDSEL_EMULATOR_BLOCKS");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : 3;
}

void run_body(void* argument) {
    auto* self = static_cast<Thread*>(argument);
    (*grid->body)();
    self->wait = Wait::kEnded;
    ++self->block->ended;
}

void start_block(Block& block, int64_t index) {
    block.index = index;
    block.begun = false;
    block.shared.reset(new unsigned char[static_cast<size_t>(grid->shared_bytes)]);
    block.at_barrier = block.ended = 0;
    block.in_vain = false;
    for (Warp& warp : block.warps) warp.arrived = 0;
    std::shuffle(block.order.begin(), block.order.end(), grid->random);
    for (auto& thread : block.threads) {
        thread->wait = Wait::kNothing;
        thread->exchanges = 0;
        thread->cluster_arrivals = 0;
        thread->fiber.start(run_body, thread.get());
    }
}

void release(Block& block, Wait wait, size_t begin, size_t end) {
    for (size_t at = begin; at < end; ++at) {
        if (block.threads[at]->wait == wait) block.threads[at]->wait = Wait::kNothing;
    }
}

enum class Turn { kNobody, kInVain, kProgress };

// Lets every thread that can go on do so once.
Turn advance(Block& block) {
    Turn turn = Turn::kNobody;
    // What another block has written there before this one has begun is lost.
    if (!block.begun) std::memset(block.shared.get(), 0xff, static_cast<size_t>(grid->shared_bytes));
    block.begun = true;
    for (int index : block.order) {
        Thread& thread = *block.threads[static_cast<size_t>(index)];
        const Wait before = thread.wait;
        if (before != Wait::kNothing && before != Wait::kOthers) continue;
        thread.wait = Wait::kNothing;
        running = &thread;
        thread.fiber.resume();
        running = nullptr;
        const bool in_vain = before == Wait::kOthers && thread.wait == Wait::kOthers;
        if (!in_vain) turn = Turn::kProgress;
        if (in_vain && turn == Turn::kNobody) turn = Turn::kInVain;
    }
    return turn;
}

std::string stuck(const Block& block) {
    std::string text = "block " + std::to_string(block.index) + ": threads wait for different things:";
    for (int shown = 0, at = 0; at < static_cast<int>(block.threads.size()) && shown < 4; ++at) {
        const Thread& thread = *block.threads[static_cast<size_t>(at)];
        const Thread& before = *block.threads[static_cast<size_t>(std::max(at - 1, 0))];
        if (at > 0 && thread.wait == before.wait && thread.line == before.line) continue;
        static const char* const kNames[] = {"nothing", "other blocks", "the barrier of line ", "the exchange of line ",
                                             "no more: ended"};
        text += " from thread " + std::to_string(at) + " on " + kNames[static_cast<int>(thread.wait)];
        if (thread.wait == Wait::kBarrier || thread.wait == Wait::kExchange) text += std::to_string(thread.line);
        text += ";";
        ++shown;
    }
    return text;
}

// Whether the threads that wait at the block's barrier wait at the same one.
bool agree(const Block& block, size_t begin, size_t end) {
    for (size_t at = begin + 1; at < end; ++at) {
        if (block.threads[at]->line != block.threads[begin]->line) return false;
    }
    return true;
}

void pause(Wait wait, int line) {
    Thread* self = running;
    self->wait = wait;
    self->line = line;
    self->fiber.pause();
}

// Fibers and stacks are kept from launch to launch.
thread_local std::vector<std::unique_ptr<Block>> pool;

void provide_blocks(int threads) {
    for (auto& block : pool) {
        if (block->threads.size() != static_cast<size_t>(threads)) block.reset();
    }
    pool.resize(grid->at_once * static_cast<size_t>(grid->cluster));
    for (auto& block : pool) {
        if (block) continue;
        block = std::make_unique<Block>();
        block->warps.resize(static_cast<size_t>(threads + kLanes - 1) / kLanes);
        block->order.resize(static_cast<size_t>(threads));
        std::iota(block->order.begin(), block->order.end(), 0);
        for (int at = 0; at < threads; ++at) {
            block->threads.push_back(std::make_unique<Thread>());
            block->threads.back()->block = block.get();
            block->threads.back()->index = at;
        }
    }
}

std::string failure_of(Block& block) {
    const auto threads = static_cast<int>(block.threads.size());
    if (block.at_barrier == threads) {
        if (!agree(block, 0, block.threads.size())) return stuck(block);
        block.at_barrier = 0;
        release(block, Wait::kBarrier, 0, block.threads.size());
        return {};
    }
    return block.ended == threads ? std::string() : stuck(block);
}

// Of `order`, the indices of clusters.
std::string run_clusters(std::vector<int64_t> order) {
    std::shuffle(order.begin(), order.end(), grid->random);
    std::vector<Block*> idle, busy;
    for (auto& block : pool) idle.push_back(block.get());
    while (!order.empty() || !busy.empty()) {
        while (!order.empty() && idle.size() >= static_cast<size_t>(grid->cluster)) {
            const auto cluster = std::make_shared<Cluster>();
            for (int rank = 0; rank < grid->cluster; ++rank) {
                Block* block = idle.back();
                idle.pop_back();
                start_block(*block, order.back() * grid->cluster + rank);
                block->cluster = cluster;
                cluster->blocks.push_back(block);
                busy.push_back(block);
            }
            order.pop_back();
        }
        size_t at = grid->random() % busy.size();
        const auto held_back = [&](const Block* b) { return b->index == grid->late && !b->begun; };
        if (held_back(busy[at])) {
            const bool wanted =
                std::all_of(busy.begin(), busy.end(), [&](const Block* b) { return held_back(b) || b->in_vain; });
            if (!wanted) at = (at + 1) % busy.size();
        }
        Block& block = *busy[at];
        const Turn turn = advance(block);
        if (turn == Turn::kProgress) {
            for (Block* other : busy) other->in_vain = false;
            continue;
        }
        block.in_vain = turn == Turn::kInVain;
        if (block.in_vain) {
            const bool all = std::all_of(busy.begin(), busy.end(), [](const Block* b) { return b->in_vain; });
            if (all) return "every block under way waits for other blocks, the first of them " + stuck(block);
            continue;
        }
        const std::string failure = failure_of(block);
        if (!failure.empty()) return failure;
        if (block.ended == static_cast<int>(block.threads.size())) {
            idle.push_back(&block);
            busy.erase(busy.begin() + static_cast<std::ptrdiff_t>(at));
        }
    }
    return {};
}

thread_local std::string message;

}  // namespace

int thread() { return running->index; }
int64_t block() { return running->block->index; }
int64_t blocks() { return grid->size; }
int threads() { return static_cast<int>(running->block->threads.size()); }
unsigned char* shared_memory() { return running->block->shared.get(); }

void barrier(int line) {
    ++running->block->at_barrier;
    pause(Wait::kBarrier, line);
}

const void* exchange(const void* mine, size_t bytes, int line) {
    Thread* self = running;
    Block& block = *self->block;
    const auto lane = static_cast<size_t>(self->index % kLanes);
    const auto first = static_cast<size_t>(self->index) - lane;
    Warp& warp = block.warps[first / kLanes];
    // Two buffers: nobody can be two exchanges ahead of a lane that still reads.
    unsigned char* slots = warp.slots[self->exchanges++ % 2];
    if (bytes > kExchangeBytes) std::abort();
    std::memcpy(slots + lane * bytes, mine, bytes);
    self->line = line;
    if (++warp.arrived == kLanes) {
        warp.arrived = 0;
        if (agree(block, first, first + kLanes)) {
            release(block, Wait::kExchange, first, first + kLanes);
            return slots;
        }
    }
    pause(Wait::kExchange, line);
    return slots;
}

void cluster_arrive() {
    ++running->cluster_arrivals;
    ++running->block->cluster->arrivals;
}

void cluster_wait() {
    const Cluster& cluster = *running->block->cluster;
    const auto all = static_cast<int64_t>(cluster.blocks.size()) * threads();
    while (cluster.arrivals < running->cluster_arrivals * all) rest();
}

void* shared_of(int rank, const void* mine) {
    const Block& self = *running->block;
    const auto offset = static_cast<const unsigned char*>(mine) - self.shared.get();
    return self.cluster->blocks[static_cast<size_t>(rank)]->shared.get() + offset;
}

void yield() { running->fiber.pause(); }

void rest() {
    running->wait = Wait::kOthers;
    running->fiber.pause();
}

const char* launch(const std::function<void()>& body, int64_t size, int threads, int shared_bytes, int cluster,
                   bool cooperative) {
    const uint64_t seed = seed_of_launch();
    const size_t at_once = cooperative ? static_cast<size_t>(size / cluster) : clusters_at_once();
    const char* late = std::getenv("IDSEL_EMULATOR_LATE");
    Grid mine{
        &body, size, shared_bytes, cluster, at_once, late == nullptr ? -1 : std::atoll(late), std::mt19937_64(seed)};
    grid = &mine;
    provide_blocks(threads);
    std::vector<int64_t> order(static_cast<size_t>(size / cluster));
    std::iota(order.begin(), order.end(), 0);
    const std::string failure = run_clusters(std::move(order));
    grid = nullptr;
    if (failure.empty()) return nullptr;
    pool.clear();  // its fibers are in the middle of something
    message = failure + " (IDSEL_EMULATOR_SEED=" + std::to_string(seed) + ")";
    return message.c_str();
}

}  // namespace idsel::emulator
