#include "display/png.h"

#include <gtest/gtest.h>
#include <png.h>
#include <unistd.h>

#include <filesystem>

namespace nacre::display {
namespace {

Surface Picture() {
  Surface surface;
  surface.Resize(5, 3);
  for (unsigned y = 0; y < 3; ++y) {
    uint32_t row[5];
    for (unsigned x = 0; x < 5; ++x) row[x] = 0xff000000 | y << 16 | x << 8 | (x + y);  // the top byte is nothing
    surface.PutRow(y, row);
  }
  return surface;
}

TEST(Png, LibpngReadsBackThePixels) {
  const auto file = EncodePng(Picture());
  ASSERT_TRUE(file) << file.error().message;
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  ASSERT_TRUE(png_image_begin_read_from_memory(&image, file->data(), file->size()));
  EXPECT_EQ(image.width, 5u);
  EXPECT_EQ(image.height, 3u);
  image.format = PNG_FORMAT_RGB;
  std::vector<uint8_t> rgb(PNG_IMAGE_SIZE(image));
  ASSERT_TRUE(png_image_finish_read(&image, nullptr, rgb.data(), 0, nullptr));
  EXPECT_EQ(rgb[(2 * 5 + 4) * 3], 2);
  EXPECT_EQ(rgb[(2 * 5 + 4) * 3 + 1], 4);
  EXPECT_EQ(rgb[(2 * 5 + 4) * 3 + 2], 6);
}

TEST(Png, AFileTakesTheNameWholeOrNotAtAll) {
  const std::string folder = testing::TempDir() + "nacre-png-" + std::to_string(getpid());
  std::filesystem::create_directory(folder);
  const Status written = WritePng(Picture(), folder + "/screen.png");
  EXPECT_TRUE(written) << written.error().message;
  EXPECT_GT(std::filesystem::file_size(folder + "/screen.png"), 60u);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
  const Status failed = WritePng(Picture(), folder + "/screen.png");
  ASSERT_FALSE(failed);
  EXPECT_NE(failed.error().message.find("screen.png"), std::string::npos);
}

TEST(Png, ASurfaceWithoutASizeIsRefused) { EXPECT_FALSE(EncodePng(Surface())); }

}  // namespace
}  // namespace nacre::display
