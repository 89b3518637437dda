// Lookups as the kernels read them: filters sorted, blocks that fit the cache, or side by side for one output pixel.
#include <algorithm>

#include "load.h"
#include "vec.h"

namespace lcnn {

void build_sparse(Prepared& p, const Reader& in, int64_t filters, const std::vector<int64_t>& flat, int64_t blocks,
                  const std::vector<int32_t>& block_of, const std::vector<int32_t>& part_of) {
    const int32_t* starts = in.ints("starts", p.s.starts, filters + 1);
    const float* values = in.floats("values", p.s.values, p.s.table_count);
    if (starts[0] != 0 || starts[filters] != p.s.table_count) fail("starts do not span the lookups");
    for (int64_t f = 0; f < filters; ++f)
        if (starts[f] > starts[f + 1]) fail("starts of filter %lld fall", (long long)f);
    bool joined = int64_t(flat.size()) > p.s.table_count;
    SparseMatrix& m = p.sparse;
    m.rows = filters;
    m.blocks = blocks;
    m.filters.resize(filters);
    for (int64_t f = 0; f < filters; ++f) m.filters[f] = int32_t(f);
    std::stable_sort(m.filters.begin(), m.filters.end(), [&](int32_t a, int32_t b) {
        return starts[a + 1] - starts[a] < starts[b + 1] - starts[b];
    });
    auto part = [&](int32_t at) { return m.parts > 1 ? part_of[at] : 0; };
    auto before = [&](int32_t a, int32_t b) { return part(a) != part(b) ? part(a) < part(b) : flat[a] < flat[b]; };
    std::vector<int32_t> own;  // the filter's lookups in this block
    for (int64_t block = 0; block < blocks; ++block) {
        for (int32_t f : m.filters) {
            own.clear();
            for (int32_t at = starts[f]; at < starts[f + 1]; ++at)
                if (block_of[at] == block) own.push_back(at);
            std::sort(own.begin(), own.end(), before);
            size_t next = 0;
            for (int64_t at = 0; at < m.parts; ++at) {
                m.starts.push_back(int32_t(m.lookups.size()));
                for (; next < own.size() && part(own[next]) == at; ++next) {
                    m.lookups.push_back({int32_t(flat[own[next]]), values[own[next]]});
                    if (joined) m.odd.push_back(int32_t(flat[p.s.table_count + own[next]]));
                }
            }
        }
        m.starts.push_back(int32_t(m.lookups.size()));
    }
    m.lookups.resize(m.lookups.size() + SparseMatrix::AHEAD);
}

void slice_sparse(Prepared& p) {
    constexpr int64_t SLICES = SLICED_FILTERS / SLICED_VL;
    SparseMatrix from = std::move(p.sparse);
    p.sparse = SparseMatrix{};
    SlicedMatrix& m = p.sliced;
    m.rows = from.rows;
    m.blocks = from.blocks;
    std::vector<int32_t> place(from.rows);  // filter -> sorted position
    for (int64_t i = 0; i < from.rows; ++i) place[from.filters[i]] = int32_t(i);
    for (int64_t chunk = 0; chunk < m.chunks(); ++chunk)
        for (int64_t block = 0; block < from.blocks; ++block) {
            const int32_t* starts = from.starts.data() + block * (from.rows + 1);
            auto count = [&](int64_t lane) {
                int64_t f = chunk * SLICED_FILTERS + lane;
                return f < from.rows ? starts[place[f] + 1] - starts[place[f]] : 0;
            };
            std::vector<int32_t> lanes(SLICED_FILTERS);
            for (int64_t i = 0; i < SLICED_FILTERS; ++i) lanes[i] = int32_t(i);
            std::stable_sort(lanes.begin(), lanes.end(), [&](int32_t a, int32_t b) { return count(a) > count(b); });
            for (int64_t slice = 0; slice < SLICES; ++slice) {
                const int32_t* own = lanes.data() + slice * SLICED_VL;
                m.starts.push_back(int32_t(m.values.size() / SLICED_VL));
                for (int64_t step = 0; step < count(own[0]); ++step)
                    for (int i = 0; i < SLICED_VL; ++i) {
                        // Behind its last lookup a filter reads it again, for nothing; one without any, its neighbour's.
                        int64_t own_count = count(own[i]), f = chunk * SLICED_FILTERS + own[own_count ? i : 0];
                        int64_t last = (own_count ? own_count : count(own[0])) - 1;
                        const Lookup& l = from.lookups[starts[place[f]] + std::min(step, last)];
                        m.offsets.push_back(l.offset);
                        m.values.push_back(step < own_count ? l.value : 0.0f);
                    }
            }
            m.lanes.insert(m.lanes.end(), lanes.begin(), lanes.end());
        }
    m.starts.push_back(int32_t(m.values.size() / SLICED_VL));
}

}  // namespace lcnn
