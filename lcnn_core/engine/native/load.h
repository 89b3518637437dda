// Checks shared by the files that load a plan: every number that a kernel will use as an address passes one of them.
#pragma once

#include <initializer_list>

#include "plan.h"

namespace lcnn {

constexpr int64_t LIMIT = int64_t(1) << 40, COUNT = 1 << 20;  // products of three counts fit 64 bits
constexpr int64_t SPACE = int64_t(1) << 34;                   // floats of an arena or of scratch

[[noreturn]] void fail(const char* format, ...);
void between(const char* what, int64_t value, int64_t low, int64_t high);
/// The product of counts, none negative, that sizes a space in memory: at most SPACE.
int64_t floats_of(const char* what, std::initializer_list<int64_t> counts);
const Tensor& tensor(const Plan& plan, const char* what, int64_t index);
void same_grid(const char* what, const Tensor& a, const Tensor& b);

constexpr int64_t LEAST_ROWS = 3;  // of a thread that divides rows with others

/// The data section of a plan.
struct Reader {
    const float* data;
    int64_t units;
    const float* floats(const char* what, int64_t offset, int64_t count) const {
        between(what, count, 0, units);
        between(what, offset, 0, units - count);
        return data + offset;
    }
    const int32_t* ints(const char* what, int64_t offset, int64_t count) const {
        return reinterpret_cast<const int32_t*>(floats(what, offset, count));
    }
};

/// Floats of the line that a pooled row is reduced to, vectors past its end included.
int64_t pool_line(const Tensor& x, const Tensor& y, const Step& s);
void check_window(const Step& s);
void check_port(const char* what, const std::vector<Port>& ports, int64_t index, int64_t floats);
/// (row, column) of each phase of a grid divided by these steps.
std::vector<std::pair<int32_t, int32_t>> read_phases(const Reader& in, const Step& s, int64_t step_y, int64_t step_x);

/// Filters sorted by their number of lookups, the lookups cut into ``blocks`` ranges of dictionary rows. ``flat``: where
/// each lookup reads, then, of joined columns, where each does for the odd one. ``part_of``: of lookups by kernel column,
/// which of the ``p.sparse.parts`` parts of its filter.
void build_sparse(Prepared& p, const Reader& in, int64_t filters, const std::vector<int64_t>& flat, int64_t blocks,
                  const std::vector<int32_t>& block_of, const std::vector<int32_t>& part_of);
/// The same lookups side by side for one output pixel; ``p.sparse`` is left empty.
void slice_sparse(Prepared& p);

/// Blocks of dictionary rows whose share of so many floats of S fits this part of the first cache; as long as a filter has enough
/// lookups in a block to pay for loading and storing its partial sums.
int64_t blocks_for(const Step& s, int64_t floats, double part = 0.625);
/// Chooses the tiles of a lookup step, its window of S, and how threads divide it (load_tiles.cpp). Planes of S a block.
int64_t choose_tiles(Prepared& p, const Tensor& x, int64_t height, int64_t width, int64_t channels);
/// Whether its lookups go by kernel column, by a model (load_shifted.cpp); sets rows of S and of a tile.
bool choose_shifted(Prepared& p, const Tensor& x, int64_t height, int64_t width);

/// Of the processor's first cache.
int64_t l1_bytes();
/// Of the processor's second cache; a larger one counts as 512 KiB.
int64_t l2_bytes();
/// Lookups beside products: cycles of the multipliers, rows of a tile, and dictionary rows of a block where blocks are gone
/// through over the whole image (load_beside.cpp).
struct Beside {
    double cost;
    int64_t rows, block_rows;
};
/// Whether they may be and pay: enough lookups a filter, no more than multiplications by the dictionary.
bool may_be_beside(const Prepared& p, int64_t channels);
/// most_bytes: of the window of S; 0 where it may hold all rows. No rows where no tile suits.
Beside choose_beside(const Prepared& p, const Tensor& x, int64_t height, int64_t channels, int64_t most_bytes);
/// Whether these fetch what lookups to come read, where S is larger than the first cache (isa.cpp). On an Emerald Rapids
/// layers of 56x56 take 0.93 to 0.95 of the time, on a Zen 5 1.0 to 1.04.
bool fetches_lookups();
/// Rows of the window where lookups of one tile run beside products that make S of the next: those start at the front
/// when the window is full, and the tile at hand is to lie behind them.
int64_t beside_rows(const Prepared& p, const Tensor& x, int64_t height, int64_t tile_rows);

/// Chooses the tensors whose pixels the threads of a team keep apart (team.cpp).
void choose_own(Plan& plan);

/// Check a step with weights, pack them, choose its tiles (load_weights.cpp).
void prepare_lookup(Plan& plan, Prepared& p, const Reader& in);
void prepare_gemm(Plan& plan, Prepared& p, const Reader& in);
void prepare_linear(Plan& plan, Prepared& p, const Reader& in);

}  // namespace lcnn
