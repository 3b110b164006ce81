#include "display/surface.h"

#include <gtest/gtest.h>

namespace nacre::display {
namespace {

TEST(Surface, AllIsChangedAfterANewSize) {
  Surface surface;
  EXPECT_FALSE(surface.changed());
  surface.Resize(100, 70);
  EXPECT_EQ(surface.TakeChanged(), (std::vector<Rectangle>{{0, 0, 100, 64}, {0, 64, 100, 6}}));
  EXPECT_FALSE(surface.changed());
  surface.Resize(100, 70);
  EXPECT_TRUE(surface.TakeChanged().empty());
  EXPECT_EQ(surface.size_generation(), 1u);
}

TEST(Surface, OnlyTilesThatDifferAreChanged) {
  Surface surface;
  surface.Resize(256, 128);
  surface.TakeChanged();
  std::vector<uint32_t> row(256, 0);
  surface.PutRow(3, row.data());
  EXPECT_FALSE(surface.changed());
  row[64] = row[191] = 0xff0000;
  surface.PutRow(70, row.data());
  EXPECT_EQ(surface.TakeChanged(), (std::vector<Rectangle>{{64, 64, 128, 64}}));
  EXPECT_EQ(surface.row(70)[64], 0xff0000u);
  row[255] = row[64] = 1;
  surface.PutRow(70, row.data());
  EXPECT_EQ(surface.TakeChanged(), (std::vector<Rectangle>{{64, 64, 64, 64}, {192, 64, 64, 64}}));
}

TEST(Surface, SizesAreBounded) {
  Surface surface;
  surface.Resize(100000, 100000);
  EXPECT_EQ(surface.width(), Surface::kMaxWidth);
  EXPECT_EQ(surface.height(), Surface::kMaxHeight);
  const std::vector<uint32_t> row(Surface::kMaxWidth, 5);
  surface.PutRow(Surface::kMaxHeight, row.data());  // ignored
  surface.Resize(0, 0);
  EXPECT_EQ(surface.width(), 1u);
  EXPECT_EQ(surface.height(), 1u);
}

}  // namespace
}  // namespace nacre::display
