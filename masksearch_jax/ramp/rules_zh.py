"""Span candidates in Chinese by regular expressions, both scripts; no segmentation, no model.

Dates, numbers with measure words, 《titles》, names with a middle dot, people after their office,
places and organisations by their last character where a particle marks their beginning.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from masksearch_jax.core import chinese
from masksearch_jax.core.types import Span

_H = chinese.CHARACTERS
_D = "\\d０-９"
_CAPITALS = "A-ZÀ-ÖØ-Þ"
_LETTERS = "A-Za-zÀ-ÖØ-öø-ʯ\u0300-\u036fḀ-ỿ"  # Latin ones and their accents
_CN = "〇零一二三四五六七八九十百千"
_ERAS = (
    "民国|民國|明治|大正|昭和|平成|令和|康熙|乾隆|雍正|道光|光绪|光緒|同治|洪武"
    "|永乐|永樂|万历|萬曆|嘉靖|崇祯|崇禎|宣统|宣統|贞观|貞觀|开元|開元"
)
_DAY = rf"(?:[{_D}]{{1,2}}[日号號]?至)?[{_D}]{{1,2}}[日号號]"
_DATE = (
    rf"(?:(?:公元前|前|公元|西元前|西元)[{_D}]{{1,4}}|(?<![{_D}.,])[{_D}]{{3,4}})年"
    rf"(?:[{_D}]{{1,2}}月(?:{_DAY})?)?(?:代(?:初|中|末)?|初|底|末|[春夏秋冬][天季]?)?"
    rf"|(?<![{_D}])[{_D}]{{1,2}}月(?:{_DAY})?"
    rf"|[{_D}]{{1,2}}世[纪紀](?:[{_D}]{{1,2}}年代)?|(?<![{_CN}]、)[{_CN}]{{1,3}}世[纪紀]"
    rf"|[{_CN}]{{4}}年(?:[{_CN}]{{1,2}}月(?:[{_CN}]{{1,3}}[日号號])?)?"
    rf"|(?:{_ERAS})(?:[{_D}]{{1,2}}|[{_CN}元]{{1,3}})年"
)
_UNIT = (
    "平方公里|平方千米|立方米|平方米|公里|千米|海里|英里|英尺|公尺|公分|厘米|毫米"
    "|公顷|公頃|公斤|千克|公噸|吨|噸|磅|升|摄氏度|攝氏度|度|美元|欧元|歐元"
    "|英镑|英鎊|日元|日圓|人民币|人民幣|港元|港币|港幣|新台币|新臺幣|元|人次"
    "|人口|人|名|位|个|個|座|所|家|间|間|部|本|册|冊|首|张|張|场|場|届"
    "|屆|次|票|席|条|條|艘|架|辆|輛|台|枚|种|種|项|項|层|層|米|岁|歲|年"
    "|节|節|天|小时|小時|分钟|分鐘|秒|倍|分|集|期|队|隊|户|戶|村|％|%"
)
_NUMBER = (
    rf"(?<![{_D}.,:：{_LETTERS}_/／-])(?:约|約)?[{_D}]+(?:[,，][{_D}]{{3}})*(?:\.[{_D}]+)?"
    rf"(?:[千万萬亿億兆余餘多]{{1,3}})?(?:{_UNIT}|(?![{_D}{_LETTERS}年月日世.:：线線号號路]))"
    rf"(?![-–—~～至到/／]?[{_D}])"
)
_TITLE = r"《(?P<title>[^《》]{1,30})》|〈(?P<title2>[^〈〉]{2,30})〉"
_BEFORE = rf"(?<![{_H}{_LETTERS}{_D}])|(?<=[是和与與及由被對对為为在于於从從的了至到向])"
_AFTER = "，。、；：！？（）()《》「」的是和与與及於于在所等为為被將将向曾則则率也以任都"
_OFFICE = (
    "总统|總統|主席|总理|總理|首相|国王|國王|皇帝|部长|部長|司长|司長|市长|市長"
    "|校长|校長|院长|院長|教授|博士|导演|導演|演员|演員|歌手|作家|诗人|詩人"
    "|画家|畫家|将军|將軍|司令|董事长|董事長|创始人|創始人|创办人|創辦人|委员"
    "|委員|议员|議員|教练|教練|球员|球員|记者|記者|律师|律師|建筑师|建築師"
    "|设计师|設計師|科学家|科學家|妻子|丈夫|儿子|兒子|女儿|女兒|父亲|父親|母亲"
    "|母親|弟弟|哥哥|妹妹|姐姐|特首|书记|書記|大臣|巡抚|巡撫|知县|知縣|知府"
    "|總督|总督"
)
_DOES = (
    "成立|出生|担任|擔任|执导|執導|导演|導演|饰演|飾演|主演|发明|發明|发现|發現|创办|創辦|创立|創立"
    "|创作|創作|提出|领导|領導|率领|率領|撰写|撰寫|设计|設計|共同|合作|兼任|执教|執教|加盟|出任|不仅|不僅"
)
_LINKS = "的了是在由與与和及被為为從从於"  # never in a foreign name
_FOREIGN = (
    rf"(?:{_BEFORE})(?P<foreign>(?!{_OFFICE})(?:(?![{_LINKS}])[{_H}A-Z]){{1,7}}(?:[·•・‧][{_H}A-Z]{{1,9}}?)+?)"
    rf"(?=[{_AFTER}]|{_DOES}|\Z)"
)
_SURNAMES = (
    "赵趙钱錢孙孫李周吴吳郑鄭王冯馮陈陳蒋蔣沈韩韓杨楊朱秦许許何吕呂张張孔曹严嚴金魏姜谢謝邹鄒"
    "章苏蘇潘葛范彭鲁魯韦韋马馬方俞任袁柳史唐薛雷贺賀倪汤湯罗羅毕畢郝安常于傅齐齊康伍余顾顧孟"
    "黄黃萧蕭尹姚邵汪毛狄明计計戴宋庞龐熊纪紀舒项項祝董梁杜阮蓝藍季贾賈江童颜顏郭梅林钟鍾徐邱"
    "骆駱高夏蔡田胡凌霍万萬柯卢盧莫房丁邓鄧洪包左石崔龚龔程邢裴陆陸翁段侯宁寧甘武刘劉景龙龍叶"
    "葉黎白蒲赖賴卓乔喬文关關游"
)
_PERSON = rf"(?<={{office}})(?P<person>[{_SURNAMES}][{_H}]{{1,2}})(?=[{_AFTER}担擔出宣表])"
_STOPS = "今称稱的了是在和与與及或而但并並由被把于於從从到至向对對为為其该該此這这那有将將以也曾"
_FROM = "在于於到至从從往赴由、和与與及自，。（入任为為"
_VERBS = "提出|投資|投资|距離|距离|負責|负责|一般|一直|依法|刊登|掠夺|掠奪|等[一二三四五六七八九十]"
_NAME = rf"(?:(?![{_STOPS}]|{_VERBS})[{_H}])"
_KNOWN = (
    "中国|中國|台湾|台灣|臺灣|香港|澳门|澳門|日本|韩国|韓國|朝鲜|朝鮮|美国|美國"
    "|英国|英國|法国|法國|德国|德國|意大利|義大利|西班牙|葡萄牙|俄罗斯|俄羅斯"
    "|苏联|蘇聯|印度|泰国|泰國|越南|菲律宾|菲律賓|马来西亚|馬來西亞|新加坡|印尼"
    "|澳大利亚|澳洲|加拿大|墨西哥|巴西|阿根廷|埃及|土耳其|伊朗|伊拉克|以色列"
    "|乌克兰|烏克蘭|波兰|波蘭|荷兰|荷蘭|比利时|比利時|瑞士|瑞典|挪威|芬兰|芬蘭"
    "|丹麦|丹麥|奥地利|奧地利|希腊|希臘|北京|上海|广州|廣州|深圳|天津|重庆|重慶"
    "|南京|台北|臺北|高雄|东京|東京|大阪|京都|首尔|首爾|伦敦|倫敦|巴黎|柏林"
    "|纽约|紐約|莫斯科|洛杉矶|洛杉磯|江苏|江蘇|浙江|福建|广东|廣東|四川|湖南"
    "|湖北|河南|河北|山东|山東|山西|陕西|陝西|云南|雲南|新疆|西藏|欧洲|歐洲"
    "|亚洲|亞洲|非洲|美洲"
)
_PLACE_ENDS = (
    "特别行政区|特別行政區|自治区|自治區|自治州|共和国|共和國|省|市|县|縣|区|區"
    "|镇|鎮|乡|鄉|村|岛|島|海峡|海峽|半岛|半島|机场|機場|车站|車站"
)
_VAGUE_ENDS = "州郡河江湖山寺宫宮路街"  # often a part of a word: only where a name must end
_ORG_ENDS = (
    "大学|大學|学院|學院|中学|中學|小学|小學|公司|集团|集團|银行|銀行|委员会"
    "|委員會|协会|協會|研究所|研究院|博物馆|博物館|医院|醫院|电视台|電視台|電視臺"
    "|出版社|俱乐部|俱樂部|议会|議會|法院|民主党|民主黨|共产党|共產黨|国民党"
    "|國民黨"
)
_PLACE = (
    rf"(?<=[{_FROM}])(?P<place>{_NAME}{{1,6}}(?:(?:{_PLACE_ENDS})"
    rf"|[{_VAGUE_ENDS}](?=[{_AFTER}{_FROM}]|\Z)))|(?P<known>{_KNOWN})"
)
_ORG = (  # no "University" of "University Institute"
    rf"(?<=[{_FROM}])(?P<org>{_NAME}{{2,12}}(?:{_ORG_ENDS}))"
    rf"(?![{_H}]{{0,12}}(?:{_ORG_ENDS}))"
)
_WORD = rf"[{_CAPITALS}][{_LETTERS}0-9]+(?:[ -][{_CAPITALS}0-9][{_LETTERS}0-9]*){{0,4}}"
_LATIN = rf"(?<![{_LETTERS}0-9-])(?P<latin>{_WORD})(?![{_LETTERS}0-9'’-])"
_SPOKEN = "你我他她了嗎吗呢吧才而"  # in what somebody says, hardly in a term
_QUOTED = rf"[「“](?P<quoted>(?:(?![{_SPOKEN}])[{_H}{_LETTERS}0-9·]){{2,12}})[」”]"


@functools.cache
def _pattern() -> re.Pattern[str]:
    # A look-behind has one width: one for offices of two characters, one for those of three.
    offices = _OFFICE.split("|")
    people = "|".join(
        _PERSON.replace("{office}", "|".join(o for o in offices if len(o) == n)).replace(
            "person", f"person{n}"
        )
        for n in (2, 3)
    )
    return re.compile(
        rf"{_TITLE}|(?P<date>{_DATE})|(?P<number>{_NUMBER})|{people}|{_FOREIGN}|{_ORG}|{_PLACE}"
        rf"|{_LATIN}|{_QUOTED}"
    )


_TYPES = {
    "title": "TERM",
    "title2": "TERM",
    "quoted": "TERM",
    "latin": "TERM",
    "date": "DATE",
    "number": "NUMBER",
    "person2": "PERSON",
    "person3": "PERSON",
    "foreign": "PERSON",
    "org": "ORG",
    "place": "PLACE",
    "known": "PLACE",
}


def candidates(paragraph: str) -> Iterator[tuple[Span, str]]:
    """Spans in text order, each with "" for its refusal, as the rules of English give them."""
    for match in _pattern().finditer(paragraph):
        group = match.lastgroup
        start, end = match.span(group)
        text = paragraph[start:end]
        if group == "number" and len(text) < 2:
            continue
        yield Span(start, end, text, _TYPES[group]), ""
