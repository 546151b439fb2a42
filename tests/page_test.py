"""The page: its content, and that a browser shows it."""

import contextlib
import csv
import html.parser
import io
import itertools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxclust import metrics
from jaxclust.errors import InputError
from jaxclust.report import maps, page, pictures

CHROMIUM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None
)
QUIET = (
  *('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'),
  *('--disable-background-networking', '--disable-component-update'),
)
SUMMARY = {
  'experiment': 'gmm',
  'dataset': {
    'name': 'mine & <yours>',
    'num_train': 60,
    'image_shape': [6, 7, 1],
    'digest': 'abc',
  },
  'seed': 3,
  'device': 'cpu (cpu)',
  'seconds': {'data': 0.1},
  'versions': {'jax': '0.10'},
  'warnings': ['k-means did not converge'],
}
NAMES = ('coat', '</script><b>', 'shoe')


def findings(with_labels=True, channels=1, **changed):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (60, 6, 7, channels), np.uint8)
  labels, classes = np.arange(60) % 4, np.arange(60) % 3
  scores = {'train': metrics.scores(classes, labels, 4)}
  found = page.Findings(
    images=images,
    places={'pca': rng.normal(size=(60, 2))},
    labels=labels,
    confidence=np.linspace(0, 1, 60),
    outlier_score=np.linspace(-3, 3, 60),
    outlier=np.linspace(0, 100, 60),
    centers=rng.random((4, 6, 7, channels)),
    classes=classes if with_labels else None,
    class_names=NAMES,
    scores=scores if with_labels else {},
    losses=[{'epoch': e, 'train_loss': 1 / e} for e in (1, 2, 3)],
    reconstruction_errors=rng.random(60),
    reconstruct=lambda images: images / 255,
    histories=np.array([[3.0, 5.0], [2.0, 4.0], [2.0, 3.5]]),
    score_name='inertia',
  )
  return found._replace(**changed)


def test_components_of_a_line_and_of_a_plane():
  line = np.arange(5.0)[:, None] * [[3.0, 4.0]]
  found = maps.principal_components(line)(line)
  np.testing.assert_allclose(abs(found[:, 0]), [10, 5, 0, 5, 10], atol=1e-12)
  np.testing.assert_allclose(found[:, 1], 0, atol=1e-12)
  turned = np.random.default_rng(0).normal(size=(50, 3)) * [9.0, 3.0, 1.0]
  found = maps.principal_components(turned)(turned)
  assert found.var(axis=0) == pytest.approx([81, 9], rel=0.5)
  np.testing.assert_allclose(found[:, 0] @ found[:, 1], 0, atol=1e-9)
  flat = np.arange(4.0)[:, None]
  flat = maps.principal_components(flat)(flat)
  assert flat.shape == (4, 2)
  np.testing.assert_array_equal(flat[:, 1], 0)


def test_neighbors_stay_together():
  pytest.importorskip('openTSNE')
  rng = np.random.default_rng(0)
  centers = 50 * np.eye(3, 8).repeat(20, 0)
  x = (centers + rng.normal(size=centers.shape)).astype(np.float32)
  fit = maps.EMBEDDINGS['tsne'].fit
  found = fit(x)(x)
  assert found.shape == (60, 2)
  means = found.reshape(3, 20, 2).mean(axis=1)
  nearest = np.linalg.norm(found[:, None] - means[None], axis=2).argmin(axis=1)
  np.testing.assert_array_equal(nearest, np.arange(3).repeat(20))
  np.testing.assert_array_equal(fit(x)(x), found)
  others = centers[::20] + 0.1
  near = np.linalg.norm(fit(x)(others)[:, None] - means[None], axis=2)
  np.testing.assert_array_equal(near.argmin(axis=1), np.arange(3))


def test_all_points_have_places_on_the_map_of_some():
  rng = np.random.default_rng(0)
  points = {
    split: np.float32(rng.normal(size=(count, 3)) * [9, 3, 1])
    for split, count in (('train', 4000), ('test', 20))
  }
  found = maps.locate(points, 'pca')
  assert list(found) == ['pca']
  for split, x in points.items():
    places = found['pca'][split]
    assert places.shape == (len(x), 2)
    for axis, scale in enumerate((9, 3)):
      match = abs(np.corrcoef(places[:, axis], x[:, axis])[0, 1])
      assert match > 0.99
      assert places[:, axis].std() == pytest.approx(scale, rel=0.4)


def test_a_map_that_fails_is_a_warning(monkeypatch, tmp_path):
  def fail(x):
    raise RuntimeError('no neighbours')

  monkeypatch.setitem(maps.EMBEDDINGS, 'tsne', maps.Embedding('t-SNE', fail))
  x = {'train': np.eye(5)}
  with pytest.warns(
    UserWarning, match=r'map by tsne cannot be drawn \(Runtime'
  ):
    assert list(maps.locate(x, 'tsne')) == ['pca']
  titles = [s.title for s in page.draw(findings(places={}), tmp_path)]
  assert 'Clusters' in titles
  assert 'Map' not in titles


def test_an_embedding_that_cannot_be_used_is_named(monkeypatch):
  with pytest.raises(InputError, match=r"embedding is 'umap': .* pca, tsne"):
    maps.check_embedding('umap')
  monkeypatch.setattr(maps.importlib.util, 'find_spec', lambda name: None)
  maps.check_embedding('pca')
  with pytest.raises(InputError, match=r"pip install '\.\[tsne\]'"):
    maps.check_embedding('tsne')


def test_a_page_offers_both_embeddings(tmp_path):
  places = np.arange(120.0).reshape(60, 2)
  found = findings(places={'pca': places, 'tsne': -places})
  sections = page.draw(found, tmp_path)
  text = page.render(SUMMARY, {}, {}, sections)
  assert map_of(text)['places'] == ['pca', 'tsne']
  assert 'value="tsne"' in text
  assert (tmp_path / 'map_tsne_class.png').is_file()


def test_names_of_clusters_are_where_they_can_be_changed(tmp_path):
  names = ('shoes', 'a "b" <i>', '2', 'bags')
  sections = page.draw(findings(cluster_names=names), tmp_path)
  text = page.render(SUMMARY, {}, {}, sections)
  assert map_of(text)['names']['cluster'] == list(names)
  inputs = [attrs for tag, attrs in Tags(text).tags if tag == 'input']
  values = [i['value'] for i in inputs if i.get('class') == 'name']
  assert values == list(names)


def map_of(text):
  """What the script of a page takes."""
  return next(json.loads(s) for s in Tags(text).scripts if s[:8] == '{"item":')


def test_the_strips_of_a_cluster_are_its_first_and_last_by_order(tmp_path):
  found = findings()
  (section,) = [s for s in page.draw(found, tmp_path) if s.clusters]
  card = section.clusters[2]
  assert (card['number'], card['size']) == (2, 15)
  members = found.images[2::4]
  for (path, text), rows in zip(
    card['strips'],
    (members[:10], members[:10], members[:-11:-1]),
    strict=True,
  ):
    assert text.endswith('members of cluster 2')
    np.testing.assert_array_equal(
      np.asarray(Image.open(path)), pictures.sheet(rows, 10, gap=1)[..., 0]
    )
  shares = dict.fromkeys(NAMES, '33%')
  assert card['classes'] == ', '.join(f'{k} {v}' for k, v in shares.items())


def test_reconstructions_are_of_the_least_and_the_largest_errors(tmp_path):
  found = findings(reconstruction_errors=np.arange(60.0))
  (section,) = [s for s in page.draw(found, tmp_path) if s.title[:3] == 'Rec']
  for (path, _), rows in zip(
    section.strips, (found.images[:10], found.images[:-11:-1]), strict=True
  ):
    twice = np.concatenate([rows, rows])
    np.testing.assert_array_equal(
      np.asarray(Image.open(path)), pictures.sheet(twice, 10, gap=1)[..., 0]
    )


class Tags(html.parser.HTMLParser):
  """The tags of a page, and what its scripts hold."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts = [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    if self.lasttag == 'script':
      self.scripts.append(data)


def test_a_page_holds_all_and_takes_names_as_text(tmp_path):
  sections = page.draw(findings(), tmp_path)
  text = page.render(SUMMARY, {'seed': 3}, {}, sections, 'python launch.py')
  assert 'mine &amp; &lt;yours&gt;' in text
  found = Tags(text)
  assert 'b' not in {tag for tag, _ in found.tags}
  images = [attrs for tag, attrs in found.tags if tag == 'img']
  assert all(i['src'].startswith('data:image/png') for i in images)
  assert all(i['alt'] for i in images)
  # Four centers, three strips each, two reconstructions, loss, purity,
  # confusion, two maps, sizes and convergence.
  assert len(images) == 4 + 12 + 2 + 7
  # The images of the map are within its data.
  assert len(list(tmp_path.glob('*.png'))) == len(images)
  data = map_of(text)
  assert data['names']['class'] == list(NAMES)
  assert data['sheet'].startswith('data:image/webp;base64,')
  assert 'k-means did not converge' in text


def test_a_page_without_labels_network_or_history(tmp_path):
  found = findings(
    with_labels=False,
    losses=[],
    reconstruct=None,
    reconstruction_errors=None,
    histories=np.zeros((0, 0)),
  )
  sections = page.draw(found, tmp_path)
  assert [s.title for s in sections] == [
    *('Clusters', 'Map', 'Sizes and confidence')
  ]
  text = page.render(SUMMARY, {}, {}, sections)
  assert 'by class' not in text


def test_a_page_with_labels_of_the_test_images_only(tmp_path):
  found = findings(with_labels=False, scores=findings().scores)
  sections = page.draw(found, tmp_path)
  (section,) = [s for s in sections if s.title == 'Clusters and classes']
  assert [path.name for path, _ in section.charts] == ['purity.png']


def test_a_page_of_seeds_that_do_not_have_the_same_scores():
  scores = {'ari': 0.25, 'nmi': 0.5, 'acc': 0.75, 'purity': 1.0}
  seeds = [{'seed': 3, 'test': scores}, {'seed': 4, 'train': {'ari': 0.125}}]
  means = {'train': {'ari': 0.125}, 'test': scores}
  summary = SUMMARY | {'seeds': seeds, 'mean': means, 'std': {}}
  text = page.render(summary, {}, {}, [])
  cells = re.findall(r'<td>([^<]*)', text[text.index('<h2 id="seeds">') :])[:14]
  assert cells == [
    *('3', '-', '-', '-', '0.2500', '0.5000', '0.7500'),
    *('4', '0.1250', '-', '-', '-', '-', '-'),
  ]


def test_an_empty_cluster_has_a_center_and_no_members(tmp_path):
  found = findings(labels=np.arange(60) % 3)
  (section,) = [s for s in page.draw(found, tmp_path) if s.clusters]
  assert section.clusters[3]['size'] == 0
  assert section.clusters[3]['strips'] == []


@contextlib.contextmanager
def shown(tmp_path, width, **changed):
  """A page in a browser, once its map is drawn; nothing goes wrong there, and
  nothing is asked for."""
  api = pytest.importorskip('playwright.sync_api')
  sections = page.draw(findings(**changed), tmp_path / 'figures')
  path = tmp_path / 'report.html'
  path.write_text(page.render(SUMMARY, {}, {}, sections))
  with api.sync_playwright() as player:
    browser = player.chromium.launch(executable_path=CHROMIUM, args=QUIET)
    tab = browser.new_page(viewport={'width': width, 'height': 900})
    told, asked = [], []
    tab.on('console', lambda message: told.append((message.type, message.text)))
    tab.on('pageerror', lambda error: told.append(('error', str(error))))
    tab.on('request', lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector('html[data-ready]', state='attached')
    yield tab
    browser.close()
  assert [text for kind, text in told if kind == 'error'] == []
  outside = [url for url in asked if not url.startswith(('data:', 'blob:'))]
  assert outside == [path.as_uri()]


IN_A_BROWSER = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium'),
]


@pytest.mark.parametrize(
  ('width', 'channels'),
  [pytest.param(*v, marks=IN_A_BROWSER) for v in ((400, 1), (1400, 3))],
)
def test_a_browser_shows_the_page_and_asks_for_nothing(
  width, channels, tmp_path
):
  with shown(tmp_path, width, channels=channels) as tab:
    assert tab.evaluate('document.documentElement.scrollWidth') == width
    broken = '[...document.images].filter(i => !i.naturalWidth).length'
    assert tab.evaluate(broken) == 0
    links = tab.locator('nav a')
    for number in range(links.count()):
      place = links.nth(number).get_attribute('href')
      assert tab.locator(f'[id="{place[1:]}"]').count() == 1
    legend = tab.locator('#legend')
    assert legend.inner_text().split() == ['0', '1', '2', '3']
    tab.get_by_label('by class').check()
    assert [t.strip() for t in legend.all_inner_texts()[0].splitlines()] == [
      *NAMES
    ]
    is_dark = 'document.documentElement.classList.contains("dark")'
    before = tab.evaluate(is_dark)
    tab.locator('#dark').press('Enter')
    assert tab.evaluate(is_dark) is not before


@pytest.mark.parametrize(
  'files',
  [
    pytest.param(f, marks=IN_A_BROWSER)
    for f in ((), [f'=a, "{n}".png' for n in range(60)])
  ],
)
def test_a_person_selects_names_and_saves_images(files, tmp_path):
  with shown(tmp_path, 1200, files=files) as tab:
    count, chosen = tab.locator('#count'), tab.locator('#number')
    assert count.inner_text() == '60 of 60 shown'
    assert chosen.is_hidden()

    plot = tab.locator('#plot')
    plot.scroll_into_view_if_needed()
    tab.locator('.bk-tool-icon-box-select').first.click()
    box = plot.bounding_box()
    corners = [(5, 36), (box['width'] - 5, box['height'] - 5)]
    (left, top), end = [(box['x'] + x, box['y'] + y) for x, y in corners]
    tab.mouse.move(left, top)
    tab.mouse.down()
    tab.mouse.move(*end, steps=5)
    tab.mouse.up()
    tab.wait_for_function('document.getElementById("number").textContent')
    assert chosen.inner_text() == '60 selected'
    thumbs = tab.locator('#thumbs button')
    assert thumbs.count() == 60

    first = thumbs.first.get_attribute('title')
    assert first.startswith(files[0] if files else 'train/0, cluster 0')
    assert 'confidence 0.00' in first
    tab.locator('#order').select_option('-outlier')
    assert 'outlier 100' in thumbs.first.get_attribute('title')
    thumbs.first.press('Enter')
    assert tab.locator('#zoom p').inner_text() == thumbs.first.get_attribute(
      'title'
    )
    tab.keyboard.press('Escape')

    tab.get_by_label('name of cluster 1').fill('bags, "small"')
    tab.get_by_label('name of cluster 3').fill('bags, "small"')
    tab.get_by_label('name of cluster 3').press('Tab')
    assert tab.locator('#legend').inner_text().count('bags') == 2
    tab.locator('.members').nth(3).press('Enter')
    assert chosen.inner_text() == '15 selected'
    rows = list(csv.DictReader(io.StringIO(saved(tab, '#save'))))
    assert {row['cluster'] for row in rows} == {'3'}
    assert {row['name'] for row in rows} == {'bags, "small"'}
    assert sorted(row['file'] for row in rows) == sorted(
      f'./{files[n]}' if files else f'train/{n}' for n in range(3, 60, 4)
    )
    names = json.loads(saved(tab, '#save-names'))
    assert names == {'1': 'bags, "small"', '3': 'bags, "small"'}

    tab.locator('#clear').press('Enter')
    assert chosen.is_hidden()
    tab.locator('#search').fill('5')
    expected = sum('5' in str(n) for n in range(60))
    assert count.inner_text() == f'{expected} of 60 shown'
    tab.locator('#search').fill('')
    tab.locator('#least').fill('0.5')
    assert count.inner_text() == '30 of 60 shown'
    tab.locator('#legend input').nth(1).uncheck()
    assert count.inner_text() == '23 of 60 shown'


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium')
def test_a_person_draws_a_lasso_and_zooms(tmp_path):
  with shown(tmp_path, 1200) as tab:
    plot = tab.locator('#plot')
    plot.scroll_into_view_if_needed()
    tab.locator('.bk-tool-icon-lasso-select').first.click()
    box = plot.bounding_box()
    left, right = box['x'] + 5, box['x'] + 0.45 * box['width']
    top, bottom = box['y'] + 36, box['y'] + box['height'] - 5
    tab.mouse.move(left, top)
    tab.mouse.down()
    for place in ((right, top), (right, bottom), (left, bottom), (left, top)):
      tab.mouse.move(*place, steps=8)
    tab.mouse.up()
    tab.wait_for_function('document.getElementById("number").textContent')
    rows = csv.DictReader(io.StringIO(saved(tab, '#save')))
    inside = np.isin(range(60), [int(row['file'][6:]) for row in rows])
    x = findings().places['pca'][:, 0]
    assert 10 < inside.sum() < 50
    assert x[inside].max() < x[~inside].min()

    width = """() => {
      const {x_range} = Bokeh.documents[0].roots()[0];
      return x_range.end - x_range.start;
    }"""
    before = tab.evaluate(width)
    tab.mouse.move((left + right) / 2, (top + bottom) / 2)
    tab.mouse.wheel(0, -300)
    tab.wait_for_function(f'({width})() < {before}')


def saved(tab, button):
  """The text that a button saves."""
  with tab.expect_download() as download:
    tab.locator(button).click()
  return pathlib.Path(download.value.path()).read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium')
def test_the_pointer_sees_the_image(tmp_path):
  with shown(tmp_path, 1200) as tab:
    plot, tip = tab.locator('#plot'), tab.locator('.bk-Tooltip')
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    for x, y in itertools.product(
      np.linspace(0.3, 0.7, 30), np.linspace(0.1, 0.9, 30)
    ):
      place = box['x'] + x * box['width'], box['y'] + y * box['height']
      tab.mouse.move(*place)
      if tip.count():
        break
    assert 'confidence 0' in tab.locator('.bk-tooltip-content').inner_text()
    picture = tab.locator('.bk-tooltip-content div[style*="--sheet"]').first
    style = 'element => getComputedStyle(element).backgroundImage'
    assert picture.evaluate(style).startswith('url("blob:')
