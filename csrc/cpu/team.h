// A few threads for the loops of a call.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace idsel::cpu {

class Crew;

// The calling thread and up to `threads - 1` helpers, which are called with the first loop that needs them. After the
// call they sleep until the next one, so that no idle thread competes with torch's own.
class Team {
  public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int threads() const { return threads_; }
    // Whether the helpers have been called.
    bool started() const { return crew_ != nullptr; }

    // body(begin, end) over [0, count) in chunks of at most `grain`, each taken by whichever thread is free. `body`
    // must not throw, and its results must not depend on the chunk it is in. A helper that is late is not waited for.
    void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

  private:
    int threads_;
    std::unique_ptr<Crew> crew_;
};

}  // namespace idsel::cpu
